"""ComfyUI's HTTP API in front of ``latent_ladder.comfyui``: ``ladder serve --comfyui``.

One process answers requests and never imports torch; one child of it does the work, job by job.
Facts of the API: https://docs.comfy.org/development/comfyui-server/comms_routes and
``comms_messages``; no code of ComfyUI.
"""
