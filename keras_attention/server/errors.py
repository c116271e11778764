"""What is said of a request that gets no answer, in the codes that gRPC and TF Serving use."""

# The HTTP status that TF Serving gives for each code.
HTTP_STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}


class RequestError(Exception):
    """A request that gets no answer, and why.

    Args:
        code: The name of a gRPC status code, such as "INVALID_ARGUMENT".
        message: What the caller is told.
        http_status: Where HTTP has a better word for it than the code's usual one.

    Example:
        >>> error = RequestError("NOT_FOUND", "Servable not found for request: Latest(fr)")
        >>> error.http_status
        404
    """

    def __init__(self, code: str, message: str, http_status: int | None = None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = http_status or HTTP_STATUS[code]
