"""Weights: loading, stored forms, dequantisation and block offloading."""
