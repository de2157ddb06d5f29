"""HTML pages that hold all that they show: the frame of a page, and sounds and pictures in its text. S samples."""

import base64
import io
from html import escape

import numpy as np


def document(title: str, policy: str, style: str, body: str) -> str:
    """A whole page. policy: its Content-Security-Policy. body: markup."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def data_uri(kind: str, content: bytes) -> str:
    """kind: a media type such as "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def flac_uri(audio: np.ndarray, sample_rate: int) -> str:
    """audio [S] as 16-bit FLAC."""
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, np.clip(audio, -1.0, 1.0), sample_rate, format="FLAC", subtype="PCM_16")
    return data_uri("audio/flac", content.getvalue())
