"""Video VAE: encoder, decoder, tiny preview decoder and tiled decoding."""
