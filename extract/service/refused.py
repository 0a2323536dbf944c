"""Why a request, or one of its images, gets no answer."""

from __future__ import annotations


class Refused(Exception):
    """An HTTP status from 400 on, and one sentence for whoever asked."""

    def __init__(self, status: int, message: str, reason: str, retry_after: int | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason  # a word for the metrics, such as "pixels"
        self.retry_after = retry_after  # seconds, or None


class DeadError(Exception):
    """The network has failed, or does not answer; a new process is needed."""
