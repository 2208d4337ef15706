"""Flashloom's attention on PyTorch tensors, through the C interface and ctypes."""
import ctypes

import torch

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3,
           torch.float8_e4m3fn: 4, torch.int8: 5, torch.uint8: 6, torch.int32: 7, torch.int64: 8,
           torch.uint64: 9}
BACKENDS = ("automatic", "reference", "cpu", "portable", "sm90")


class _Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("rank", ctypes.c_int32),
                ("shape", ctypes.c_int64 * 6), ("strides", ctypes.c_int64 * 6)]

    def set(self, tensor):
        # PyTorch draws seeds as int64; the bits are those of a u64.
        self.data = tensor.data_ptr()
        self.dtype = 9 if tensor.dtype == torch.int64 else _DTYPES[tensor.dtype]
        self.rank = tensor.dim()
        self.shape[:tensor.dim()] = tensor.shape
        self.strides[:tensor.dim()] = tensor.stride()


def _fields(kind, names):
    return [(name, kind) for name in names.split()]


# FlashloomAttention of flashloom_attention.h, field by field.
class _Call(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("device_kind", ctypes.c_int32),
                ("device_index", ctypes.c_int32), ("stream", ctypes.c_void_p),
                ("workspace", ctypes.c_void_p), ("workspace_bytes", ctypes.c_size_t)]
    _fields_ += _fields(_Tensor, "q k v out lse dout dlse dq dk dv cu_query cu_key used_query "
                                 "used_key sinks")
    _fields_ += _fields(ctypes.c_int64, "max_query max_key left right")
    _fields_ += _fields(ctypes.c_int32, "has_offset deterministic")
    _fields_ += [("offset", ctypes.c_int64), ("scale", ctypes.c_float), ("backend", ctypes.c_int32)]
    _fields_ += _fields(_Tensor, "entropy dentropy dsinks alibi_slopes bias dbias dropout_seed "
                                 "dropout_offset page_table query_positions key_positions "
                                 "query_count key_count output_index query_bucket_offsets "
                                 "key_bucket_offsets block_row_offsets block_columns block_partial "
                                 "block_bits block_column_offsets block_transposed_rows "
                                 "block_transposed_partial gate_threshold gate_kept "
                                 "gate_dropped_mass status q_scale k_scale v_scale out_scale "
                                 "amax_out")
    _fields_ += _fields(ctypes.c_int64, "page_size query_start key_start block_rows block_keys "
                                        "gate_rows gate_keys")
    _fields_ += _fields(ctypes.c_float, "softcap dropout_probability entropy_order "
                                        "multiprocessor_share")
    _fields_ += _fields(ctypes.c_int32, "has_starts exclude_self accumulate splits gate_kind "
                                        "reserved")


class _Merge(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("device_kind", ctypes.c_int32),
                ("device_index", ctypes.c_int32), ("stream", ctypes.c_void_p)]
    _fields_ += _fields(_Tensor, "out lse parts part_lse sinks")


def _place(call, device):
    call.size = ctypes.sizeof(call)
    call.device_kind = 1 if device.type == "cuda" else 0
    call.device_index = device.index or 0
    if device.type == "cuda":
        call.stream = torch.cuda.current_stream().cuda_stream


class Attention:
    """Loads the shared library; calls take tensors (B, H, S, D) or packed (H, T, D)."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.message = ctypes.create_string_buffer(512)

    def _check(self, status):
        if status:
            raise RuntimeError(self.message.value.decode())

    def _call(self, left=-1, right=-1, backend=0, offset=None, query_start=None, key_start=None,
              **values):
        """Tensors and numbers by the names of the C struct; None is not given."""
        call = _Call(left=left, right=right,
                     backend=BACKENDS.index(backend) if isinstance(backend, str) else backend)
        _place(call, values["q"].device)
        if offset is not None:
            call.has_offset, call.offset = 1, offset
        if query_start is not None or key_start is not None:
            call.has_starts, call.query_start, call.key_start = 1, query_start, key_start
        for name, value in values.items():
            if not hasattr(call, name):
                raise TypeError(f"flashloom_attention has no field {name}")
            if isinstance(value, torch.Tensor):
                getattr(call, name).set(value)
            elif value is not None:
                setattr(call, name, value)
        return call

    def prepare(self, direction, workspace=None, **values):
        """A call ready to run many times: returns a function without arguments. `direction` is
        "forward" or "backward"; see _call() for the rest."""
        call = self._call(**values)
        device = values["q"].device
        size = ctypes.c_size_t()
        name = f"flashloom_attention_{direction}"
        self._check(getattr(self.library, name + "_workspace")(
            ctypes.byref(call), ctypes.byref(size), self.message, 512))
        # All ones: NaN in every float type, so that a read before a write shows.
        memory = torch.full((size.value + 64,), 255, dtype=torch.uint8, device=device)
        call.workspace = (memory.data_ptr() + 63) // 64 * 64
        call.workspace_bytes = size.value
        function = getattr(self.library, name)
        keep = (memory, values)

        def run():
            self._check(function(ctypes.byref(call), self.message, 512))
            return keep

        return run

    def backend(self, direction, **values):
        """(name of the backend that the call would take, why not a faster one)."""
        call = self._call(**values)
        backend = ctypes.c_int32()
        self.message.value = b""
        self._check(getattr(self.library, f"flashloom_attention_{direction}_backend")(
            ctypes.byref(call), ctypes.byref(backend), self.message, 512))
        return BACKENDS[backend.value], self.message.value.decode()

    def merge(self, out, parts, part_lse, lse=None, sinks=None):
        call = _Merge()
        _place(call, out.device)
        for name, value in dict(out=out, lse=lse, parts=parts, part_lse=part_lse,
                                sinks=sinks).items():
            if value is not None:
                getattr(call, name).set(value)
        self._check(self.library.flashloom_attention_merge(ctypes.byref(call), self.message, 512))

    def check(self, **values):
        """Waits for the stream; raises if a kernel met bad index data."""
        self._check(self.library.flashloom_attention_check(
            ctypes.byref(self._call(**values)), self.message, 512))
