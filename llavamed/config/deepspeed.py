"""The `deepspeed` section of an engine: the settings of DeepSpeed itself that a run may change.

Names, types and bounds are DeepSpeed's (0.19), so that a misspelt key is found here and not ignored
there; a test compares them with the installed DeepSpeed. This leaves out what our other
fields decide, what DeepSpeed has deprecated or removed, and the parts that our engine does not use
(pipeline, tensor, expert and sequence parallelism, inference, data loading, checkpoint files).
"""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from llavamed.config.section import Fraction, Section

Size = Annotated[int, Field(ge=0, lt=2**63)]

_DERIVED = {  # settings of DeepSpeed, and the fields of ours that decide them
    "train_micro_batch_size_per_gpu": "stages.*.micro_batch_size",
    "gradient_accumulation_steps": "stages.*.global_batch_size",
    "train_batch_size": "stages.*.global_batch_size",
    "gradient_clipping": "stages.*.max_grad_norm",
    "activation_checkpointing": "stages.*.gradient_checkpointing",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "optimizer": "stages.*.optimizer",
    "scheduler": "stages.*.schedule",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.offload_optimizer": "engine.offload_optimizer",
}


class _Settings(Section):
    """Settings of DeepSpeed. Only those that are set are passed on."""

    @model_serializer(mode="wrap")
    def _leave_out_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class OffloadParam(_Settings):
    """Where ZeRO-3 keeps parameters that are not in use."""

    device: Literal["none", "cpu", "nvme"] | None = None
    """Where parameters that are not in use are kept."""
    nvme_path: str | None = None
    """Folder on a fast local disk, for `device: nvme`."""
    buffer_count: Size | None = None
    """Number of buffers between disk and GPU."""
    buffer_size: Size | None = None
    """Size of each buffer, in elements."""
    max_in_cpu: Size | None = None
    """Number of parameters kept in host memory when they are offloaded to disk."""
    pin_memory: bool | None = None
    """Lock pages of host memory, so that copies to the GPU are faster."""


class ZeroOptimization(_Settings):
    """Buckets, prefetching and communication of ZeRO."""

    contiguous_gradients: bool | None = None
    """Copy gradients to one buffer as they appear, which avoids fragmented memory."""
    reduce_scatter: bool | None = None
    """Average gradients by reduce-scatter instead of all-reduce."""
    reduce_bucket_size: Size | None = None
    """Number of gradient elements reduced at once. Fewer elements save memory."""
    use_multi_rank_bucket_allreduce: bool | None = None
    """Join the reductions of several ranks in one all-reduce."""
    allgather_partitions: bool | None = None
    """Collect updated parameters by all-gather instead of broadcasts."""
    allgather_bucket_size: Size | None = None
    """Number of parameter elements gathered at once. Fewer elements save memory."""
    overlap_comm: bool | None = None
    """Reduce gradients while the backward pass goes on."""
    offload_param: OffloadParam | None = None
    """Where ZeRO-3 keeps parameters that are not in use."""
    sub_group_size: Size | None = None
    """Number of parameters that one step of the ZeRO-3 optimizer updates at once."""
    stage3_prefetch_bucket_size: Size | None = None
    """Number of parameter elements that ZeRO-3 fetches ahead."""
    stage3_param_persistence_threshold: Size | None = None
    """Parameters of fewer elements stay whole on every GPU."""
    stage3_model_persistence_threshold: Size | None = None
    """Number of elements that may stay whole on every GPU in all."""
    stage3_max_live_parameters: Size | None = None
    """Number of gathered elements above which ZeRO-3 releases parameters."""
    stage3_max_reuse_distance: Size | None = None
    """A parameter used again within this number of elements is not released."""
    stage3_module_granularity_threshold: Size | None = None
    """Modules of fewer elements are gathered as one."""
    stage3_use_all_reduce_for_fetch_params: bool | None = None
    """Fetch parameters by all-reduce instead of all-gather."""
    stage3_allgather_sequential: bool | None = None
    """Gather the parameters of a bucket one after another."""
    ignore_unused_parameters: bool | None = None
    """Accept parameters that get no gradient."""
    round_robin_gradients: bool | None = None
    """Spread copies of gradients to the host evenly over ranks."""
    parameter_alignment: bool | None = None
    """Pad partitions so that each parameter begins at an aligned address."""
    zero_hpz_partition_size: Size | None = None
    """Number of ranks that keep a second partition of the parameters (ZeRO++)."""
    zero_quantized_weights: bool | None = None
    """Gather parameters in eight bits (ZeRO++). Changes the numbers."""
    zero_quantized_nontrainable_weights: bool | None = None
    """Keep frozen parameters in eight bits. Changes the numbers."""
    zero_quantized_gradients: bool | None = None
    """Reduce gradients in four bits (ZeRO++). Changes the numbers."""
    memory_efficient_linear: bool | None = None
    """Replace linear layers by ones that keep less for the backward pass."""
    log_trace_cache_warnings: bool | None = None
    """Warn when the order of modules differs from that of earlier steps."""
    enable_sanity_checks: bool | None = None
    """Check ZeRO's own invariants, which costs time."""


class DataTypes(_Settings):
    """Number formats of what DeepSpeed accumulates."""

    grad_accum_dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """Number format in which gradients are accumulated."""


class CommsLogger(_Settings):
    """Logging of every collective, to find slow ones."""

    enabled: bool | None = None
    """Whether it is enabled."""
    verbose: bool | None = None
    """Log each collective when it happens."""
    prof_all: bool | None = None
    """Log all collectives, not only `prof_ops`."""
    prof_ops: tuple[str, ...] | None = None
    """Names of the collectives to log."""
    debug: bool | None = None
    """Log the caller of each collective as well."""


class FlopsProfiler(_Settings):
    """DeepSpeed's own count of operations, printed at one step."""

    enabled: bool | None = None
    """Whether it is enabled."""
    recompute_fwd_factor: Fraction | None = None
    """Part of the forward pass that is computed twice, which is counted once more."""
    profile_step: Size | None = None
    """Step to profile."""
    module_depth: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """Depth of modules to print; -1 is the innermost."""
    top_modules: Size | None = None
    """Number of modules to print at each depth."""
    detailed: bool | None = None
    """Print every module."""
    output_file: str | None = None
    """File to print to. By default the standard output."""


class AsyncIo(_Settings):
    """Asynchronous NVMe reads and writes, with `offload_param`."""

    block_size: Size | None = None
    """Size of a read or write, in bytes."""
    queue_depth: Size | None = None
    """Number of concurrent reads or writes."""
    intra_op_parallelism: Size | None = None
    """Number of threads per read or write."""
    single_submit: bool | None = None
    """Submit each block by itself."""
    overlap_events: bool | None = None
    """Submit blocks while earlier ones complete."""
    use_gds: bool | None = None
    """Read and write GPU memory directly (GPUDirect Storage)."""


class DeepSpeed(_Settings):
    """Settings passed on to DeepSpeed as they are, over those derived from other fields."""

    zero_optimization: ZeroOptimization | None = None
    """Settings of ZeRO."""
    data_types: DataTypes | None = None
    """Number formats."""
    comms_logger: CommsLogger | None = None
    """Logging of collectives."""
    flops_profiler: FlopsProfiler | None = None
    """DeepSpeed's profiler."""
    aio: AsyncIo | None = None
    """Asynchronous reads and writes."""
    steps_per_print: Size | None = None
    """Number of steps between two of DeepSpeed's own log lines. By default none are written."""
    dump_state: bool | None = None
    """Print the state of DeepSpeed's engine when it starts."""
    disable_python_gc: bool | None = None
    """Run Python's garbage collector only when DeepSpeed calls it."""
    disable_allgather: bool | None = None
    """Broadcast updated parameters instead of gathering them."""
    communication_data_type: Literal["fp32", "fp16", "bf16"] | None = None
    """Number format in which gradients are sent."""
    prescale_gradients: bool | None = None
    """Divide gradients before they are summed over workers, not after."""
    gradient_predivide_factor: Annotated[float, Field(gt=0)] | None = None
    """Factor by which gradients are divided before the sum, with `prescale_gradients`."""
    wall_clock_breakdown: bool | None = None
    """Log the time of forward, backward and step. Each then waits for the GPU."""
    memory_breakdown: bool | None = None
    """Log the memory in use at each phase of a step."""
    log_level: Literal["debug", "info", "warning", "error", "critical"] | None = None
    """Level of DeepSpeed's own log."""
    zero_allow_untested_optimizer: bool | None = None
    """Accept an optimizer that DeepSpeed has not tested with ZeRO. We set it to true."""
    zero_force_ds_cpu_optimizer: bool | None = None
    """Insist on DeepSpeed's own CPU optimizer. We set it to false, as it is compiled at run
    time."""

    @model_validator(mode="before")
    @classmethod
    def _derived_stay_derived(cls, settings: Any) -> Any:
        for key, value in settings.items() if isinstance(settings, dict) else ():
            nested = [f"{key}.{name}" for name in value] if isinstance(value, dict) else []
            for name in (key, *nested):
                if name in _DERIVED:
                    raise ValueError(f"{name}: is derived; set {_DERIVED[name]} instead")
        return settings
