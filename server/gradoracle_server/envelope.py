"""The envelope of a message between the front and a worker: what comes first of each, and its flags."""

from __future__ import annotations

import struct

SHARED_FROM = 256 * 1024
"""Payloads of this many bytes or more go through a memory file."""

ENVELOPE = struct.Struct("<HBBIQ")  # flags, kind, length of the head, attachments, bytes of payload
SPAN = struct.Struct("<QQ")  # offset and length of one attachment
PAYLOAD_IN_MEMORY = 1
HAS_ATTACHMENTS = 2
ATTACHMENTS_WELCOME = 4
CALLERS_MEMORY = 8
WITHOUT_DESCRIPTOR = 16
IN_LANE = 32
NEW_LANE = 64
AHEAD = 128
ALL_READ = 256
HEAD_AT_MOST = 128  # bytes
