"""HTTP server with ComfyUI's API for ``latent_ladder.comfyui``: ``ladder serve --comfyui``.

One process answers requests and never imports torch; its child process runs one job at a time.
The API follows https://docs.comfy.org/development/comfyui-server/comms_routes and
``comms_messages``; no code is from ComfyUI.
"""
