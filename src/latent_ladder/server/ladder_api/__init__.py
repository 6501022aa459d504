"""HTTP API of Ladder Studio, ``/ladder/...``: requests, jobs, runs, uploads, models, graphs.

``route_table.py`` lists all routes with the models of their bodies and answers; the OpenAPI
document and the reference page are generated from it.
"""
