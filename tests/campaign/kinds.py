"""All kinds of the campaign, with their counts in the suite and in the long form."""

from __future__ import annotations

from campaign import attacks, damaged_files, surroundings
from campaign.trials import Kind

KINDS = (
    Kind("containers", damaged_files.containers, few=60, many=3000),
    Kind("indexes", damaged_files.indexes, few=30, many=1000),
    Kind("media", damaged_files.media, few=40, many=1500),
    Kind("requests", damaged_files.requests, few=60, many=3000),
    Kind("workflows", damaged_files.workflows, few=30, many=1500),
    Kind("names", damaged_files.names, few=40, many=400),
    Kind("disks", surroundings.disks, few=12, many=400),
    Kind("kills", surroundings.kills, few=2, many=60),
    Kind("clips", surroundings.clips, few=1, many=8, slowest_s=300),
    Kind("attacks", attacks.attacks, few=40, many=1500),
)
