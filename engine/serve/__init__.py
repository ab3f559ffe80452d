"""Serve a run: an address on this machine at which other programs ask it, in OpenAI's language.

serving.start(workspace, run_id) begins one; serving.now says how it stands; lines says how to ask it. What answers
(programs) is a server of others behind a front of ours that lets nothing else through; keeper is the process of both.
"""

__all__ = ["front", "keeper", "lines", "programs", "serving"]
