"""Schedules, samplers, guiders and the denoising loop."""
