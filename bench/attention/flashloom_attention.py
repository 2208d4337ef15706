"""Flashloom's attention on PyTorch tensors, through the C interface and ctypes."""
import ctypes

import torch

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3, torch.int32: 7}


class _Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("dtype", ctypes.c_int32), ("rank", ctypes.c_int32),
                ("shape", ctypes.c_int64 * 6), ("strides", ctypes.c_int64 * 6)]


class _Call(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("device_kind", ctypes.c_int32),
                ("device_index", ctypes.c_int32), ("stream", ctypes.c_void_p),
                ("workspace", ctypes.c_void_p), ("workspace_bytes", ctypes.c_size_t)]
    _fields_ += [(name, _Tensor) for name in (
        "q", "k", "v", "out", "lse", "dout", "dlse", "dq", "dk", "dv", "cu_query", "cu_key",
        "used_query", "used_key", "sinks")]
    _fields_ += [("max_query", ctypes.c_int64), ("max_key", ctypes.c_int64),
                 ("left", ctypes.c_int64), ("right", ctypes.c_int64),
                 ("has_offset", ctypes.c_int32), ("deterministic", ctypes.c_int32),
                 ("offset", ctypes.c_int64), ("scale", ctypes.c_float),
                 ("backend", ctypes.c_int32)]


class Attention:
    """Loads the shared library; calls take tensors (B, H, S, D) or packed (H, T, D)."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.message = ctypes.create_string_buffer(512)

    def _check(self, status):
        if status:
            raise RuntimeError(self.message.value.decode())

    def prepare(self, direction, left=-1, right=-1, deterministic=False, scale=0.0, max_query=0,
                max_key=0, workspace=None, **tensors):
        """A call ready to run many times: returns a function without arguments."""
        call = _Call(size=ctypes.sizeof(_Call), left=left, right=right, scale=scale,
                     deterministic=deterministic, max_query=max_query, max_key=max_key)
        device = tensors["q"].device
        call.device_kind = 1 if device.type == "cuda" else 0
        call.device_index = device.index or 0
        for name, tensor in tensors.items():
            field = getattr(call, name)
            field.data = tensor.data_ptr()
            field.dtype = _DTYPES[tensor.dtype]
            field.rank = tensor.dim()
            for i in range(tensor.dim()):
                field.shape[i] = tensor.shape[i]
                field.strides[i] = tensor.stride(i)
        size = ctypes.c_size_t()
        name = f"flashloom_attention_{direction}"
        self._check(getattr(self.library, name + "_workspace")(
            ctypes.byref(call), ctypes.byref(size), self.message, 512))
        memory = torch.full((size.value + 64,), 255, dtype=torch.uint8, device=device)
        call.workspace = (memory.data_ptr() + 63) // 64 * 64
        call.workspace_bytes = size.value
        if device.type == "cuda":
            call.stream = torch.cuda.current_stream().cuda_stream
        function = getattr(self.library, name)
        keep = (memory, tensors)

        def run():
            self._check(function(ctypes.byref(call), self.message, 512))
            return keep

        return run
