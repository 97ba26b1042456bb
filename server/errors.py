"""Every error the server can answer with, its HTTP status and TGI's error_type.

    ServeError
    ├── BodyError                     the body is not the expected type (plain text)
    │   ├── UnsupportedMediaType      415
    │   ├── MalformedJSON             400
    │   ├── WrongType                 422
    │   └── BodyTooLarge              413
    ├── ValidationError               422  validation
    ├── TemplateError                 422  template_error
    ├── ToolError                     422  tool_error
    ├── UnsupportedSuffix             422  suffix not supported
    ├── BatchTooLarge                 422  batch size exceeded
    ├── UnknownModel                  404  not_found
    ├── Forbidden                     403  forbidden
    ├── Overloaded                    429  overloaded
    ├── GenerationError               424  generation
    ├── IncompleteGeneration          500  incomplete_generation (incomplete_generation_stream inside a stream)
    │   └── CutByStop                 503  the same words
    ├── Unavailable                   503  unavailable
    └── ConfigurationError            the process refuses to start (exit code 78)

The texts and statuses are TGI's (wire contract, section 2); `unavailable`, `not_found` and `forbidden` are ours.
"""

from __future__ import annotations


class ServeError(Exception):
    """Root of the tree. `text` is the whole `error` string a client reads."""

    status = 500
    error_type = "incomplete_generation"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    @property
    def stream_error_type(self) -> str:
        """The error_type used inside a native stream."""
        return self.error_type

    @property
    def stream_text(self) -> str:
        """The text used inside a stream."""
        return self.text


class BodyError(ServeError):
    """The body could not be read as the expected type: answered as text/plain, before any validation."""

    status = 422
    prefix = ""

    def __init__(self, reason: str = "") -> None:
        super().__init__(self.prefix + reason)


class UnsupportedMediaType(BodyError):
    """Content-Type is missing or is not JSON."""

    status = 415
    prefix = "Expected request with `Content-Type: application/json`"


class MalformedJSON(BodyError):
    """The body is not JSON."""

    status = 400
    prefix = "Failed to parse the request body as JSON: "


class WrongType(BodyError):
    """The body is JSON of another shape: a wrong type, a missing or a repeated field."""

    prefix = "Failed to deserialize the JSON body into the target type: "


class BodyTooLarge(BodyError):
    """The body is over the payload limit."""

    status = 413
    prefix = "Failed to buffer the request body: length limit exceeded"


class ValidationError(ServeError):
    """A value is outside what this model and server allow (wire contract, section 4)."""

    status = 422
    error_type = "validation"

    def __init__(self, message: str) -> None:
        super().__init__(f"Input validation error: {message}")


class TemplateError(ServeError):
    """The chat template is missing or refused the messages."""

    status = 422
    error_type = "template_error"

    def __init__(self, reason: str) -> None:
        super().__init__(f"Template error: {reason}")


class ToolError(ServeError):
    """Tools cannot be used as asked, or the model's tool call could not be read."""

    status = 422
    error_type = "tool_error"

    def __init__(self, reason: str) -> None:
        super().__init__(f"Tool error: {reason}")


class UnsupportedSuffix(ServeError):
    """/v1/completions with a suffix."""

    status = 422
    error_type = "suffix not supported"

    def __init__(self) -> None:
        super().__init__("Suffix is not supported and can be achieved by preprocessing the prompt.")


class BatchTooLarge(ServeError):
    """/v1/completions with too many prompts."""

    status = 422
    error_type = "batch size exceeded"

    def __init__(self, limit: int) -> None:
        super().__init__(f"Number of prompts exceeds the maximum allowed batch size of {limit}")


class UnknownModel(ServeError):
    """A path names a model that is not configured (a name in a body never does this unless swap.strict_names)."""

    status = 404
    error_type = "not_found"

    def __init__(self, model: str, known: tuple[str, ...]) -> None:
        super().__init__(f"Model {model!r} is not configured. Configured: {', '.join(known)}")


class Forbidden(ServeError):
    """An admin action without the right to it."""

    status = 403
    error_type = "forbidden"


class Overloaded(ServeError):
    """MAX_CONCURRENT_REQUESTS sequences are already waiting, running or parked."""

    status = 429
    error_type = "overloaded"

    def __init__(self) -> None:
        super().__init__("Model is overloaded")


class GenerationError(ServeError):
    """The device failed this sequence, and a replay could not save it."""

    status = 424
    error_type = "generation"

    def __init__(self, reason: str) -> None:
        super().__init__(f"Request failed during generation: {reason}")


class IncompleteGeneration(ServeError):
    """The sequence was cut off without a last token: a bug, or one of its kinds below."""

    def __init__(self) -> None:
        super().__init__("Incomplete generation")

    @property
    def stream_error_type(self) -> str:
        return "incomplete_generation_stream"

    @property
    def stream_text(self) -> str:
        return "Incomplete generation stream"


class CutByStop(IncompleteGeneration):
    """The server stopped before the last token. 503: whoever asks again, elsewhere or later, is served.

    Without Retry-After: nobody knows whether this server comes back.
    """

    status = 503


class Unavailable(ServeError):
    """No model can serve this now: stopping, failed, or nobody's turn came within swap.give_up."""

    status = 503
    error_type = "unavailable"

    def __init__(self, text: str, retry_after_s: int | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class ConfigurationError(ServeError):
    """The configuration cannot work; the text names the file, the key, the value and what is allowed."""

    error_type = "configuration"
