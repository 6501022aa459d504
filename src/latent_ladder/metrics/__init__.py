"""Quality measures of clips: video, audio and optical flow."""
