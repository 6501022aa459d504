"""Quality metrics of clips: video, audio and optical flow."""
