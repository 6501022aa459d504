"""Readers and writers of video, image and audio files."""
