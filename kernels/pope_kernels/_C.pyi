"""Types of the native extension. Addresses are integers from ``Tensor.data_ptr()``; 0 stands for null."""

compiler: str

def token_logprobs(
    logits: int,
    dtype: int,
    rows: int,
    cols: int,
    row_stride: int,
    labels: int,
    scale: float,
    softcap: float,
    logprobs: int,
    lse: int,
    threads: int,
    /,
) -> None: ...
def logit_gradient(
    logits: int,
    dtype: int,
    rows: int,
    cols: int,
    row_stride: int,
    labels: int,
    scale: float,
    softcap: float,
    lse: int,
    coefficients: int,
    out: int,
    out_row_stride: int,
    threads: int,
    /,
) -> None: ...
def response_sums(
    logprobs: int, is_double: bool, labels: int, response_offsets: int, num_responses: int, mean: bool, out: int, /
) -> None: ...
def token_coefficients(
    grad: int, is_double: bool, labels: int, response_offsets: int, num_responses: int, mean: bool, out: int, /
) -> None: ...
def slate_objective(
    response_logprobs: int,
    logging_logprobs: int,
    utility: int,
    slate_offsets: int,
    num_slates: int,
    num_responses: int,
    diversity_weight: float,
    weighting: int,
    normalization: int,
    log_clip: float,
    utility_form: int,
    diversity_form: int,
    slate_denominator: float,
    log_weights: int,
    weights: int,
    coefficients: int,
    /,
) -> tuple[float, float, float, float, float, float, int]: ...
def advise_huge_pages(data: int, bytes: int, /) -> None: ...
def cuda_devices() -> list[tuple[str, int]] | None: ...
def cpu_is_amd() -> bool: ...
def isa() -> str: ...
def use_isa(name: str, /) -> bool: ...

# Only in a build with CUDA; `stream` is the address of a cudaStream_t.
def cuda_unfit() -> str: ...
def cuda_token_logprobs(
    logits: int,
    dtype: int,
    rows: int,
    cols: int,
    row_stride: int,
    labels: int,
    scale: float,
    softcap: float,
    logprobs: int,
    lse: int,
    stream: int,
    /,
) -> None: ...
def cuda_logit_gradient(
    logits: int,
    dtype: int,
    rows: int,
    cols: int,
    row_stride: int,
    labels: int,
    scale: float,
    softcap: float,
    lse: int,
    coefficients: int,
    out: int,
    out_row_stride: int,
    stream: int,
    /,
) -> None: ...
def cuda_response_sums(
    logprobs: int,
    is_double: bool,
    labels: int,
    response_offsets: int,
    num_tokens: int,
    num_responses: int,
    mean: bool,
    out: int,
    stream: int,
    /,
) -> None: ...
def cuda_token_coefficients(
    grad: int,
    is_double: bool,
    labels: int,
    response_offsets: int,
    num_tokens: int,
    num_responses: int,
    mean: bool,
    out: int,
    stream: int,
    /,
) -> None: ...
def cuda_slate_objective(
    response_logprobs: int,
    logging_logprobs: int,
    utility: int,
    slate_offsets: int,
    num_slates: int,
    num_responses: int,
    diversity_weight: float,
    weighting: int,
    normalization: int,
    log_clip: float,
    utility_form: int,
    diversity_form: int,
    slate_denominator: float,
    is_double: bool,
    value: int,
    utility_value: int,
    diversity_value: int,
    log_weights: int,
    weights: int,
    effective_sample_size: int,
    clip_fraction: int,
    coefficients: int,
    largest_log_weight: int,
    largest_slate: int,
    valid: int,
    token_logprobs: int,
    share: int,
    token_coefficients: int,
    labels: int,
    response_offsets: int,
    num_tokens: int,
    mean: bool,
    stream: int,
    /,
) -> None: ...
