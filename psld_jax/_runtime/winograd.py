"""3x3 convolutions of float32 on a CPU in half to a third of the time, by Winograd's F(4x4, 3x3).

``winograd.cc`` has the method. It is compiled for the machine that it runs on, together with the first program that has
such a convolution, and it is kept. XLA convolves where there is no C++ compiler, and in all other programs. The result
differs from XLA's because sums have another order: the error is 1e-6 of the size of the result, where XLA's is 4e-7.

``PSLD_JAX_WINOGRAD`` in the environment says whether it is used. ``auto``, the default, uses it as above, and warns
with the reason where it cannot. ``off`` does not use it. With ``on`` it is an error if it cannot be used.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import platformdirs
from jax import ShapeDtypeStruct, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from psld_jax._runtime.errors import check_choice

Array = Any

VARIABLE = "PSLD_JAX_WINOGRAD"
_SOURCE = Path(__file__).with_suffix(".cc")
#: Names of the library's functions, and of XLA's targets.
_CONVOLUTION, _KERNEL_GRADIENT = "WinogradConvolution", "WinogradKernelGradient"
#: Products of channels that one tile is worth transforming the kernel for; measured, from 32 to 512 channels.
_KERNEL_PER_TILE = 8192


# What is convolved


def suits(x: Array, kernel: Array) -> bool:
    """Tell whether :func:`convolve` takes ``x [n, H, W, C]``, ``kernel [3, 3, C, D]``: float32, channels in sixteens.

    What is mapped over devices by name (``shard_map`` with its checks, explicit sharding) is left to XLA.
    """
    if jnp.result_type(x) != jnp.float32 or jnp.result_type(kernel) != jnp.float32:
        return False
    if kernel.shape[:2] != (3, 3) or any(channels % 16 for channels in kernel.shape[2:]):
        return False
    types = jax.typeof(x), jax.typeof(kernel)
    return not any(t.manual_axis_type.varying or any(t.sharding.spec) for t in types)


def convolve(x: Array, kernel: Array) -> Array:
    """Convolve ``x [n, H, W, C]`` with ``kernel [3, 3, C, D]``, zeros around ``x``: ``[n, H, W, D]``, float32.

    Derivatives of any order, forward and back, are of the same kind. Ask :func:`suits` before.
    """
    return _convolution.bind(x, kernel, turned=False)


# The form sum_p <conv(x, w), y> is linear in each of x, w and y. Its three derivatives are all there is to compute:
# the convolution, the gradient to x, which is a convolution with the kernel turned around, and the gradient to w.
_convolution = Primitive("winograd_convolution")
_kernel_gradient = Primitive("winograd_kernel_gradient")
#: Names of the primitives, for whoever reads a jaxpr.
PRIMITIVES = (_convolution.name, _kernel_gradient.name)


def _image_shape(x: Any, kernel: Any, *, turned: bool) -> tuple[int, ...]:
    return *x.shape[:3], kernel.shape[2 if turned else 3]


def _kernel_shape(x: Any, y: Any) -> tuple[int, ...]:
    return 3, 3, x.shape[3], y.shape[3]


def _xla_convolution(x: Array, kernel: Array, *, turned: bool = False) -> Array:
    if turned:
        like = ShapeDtypeStruct(_image_shape(x, kernel, turned=True), x.dtype)
        return jax.linear_transpose(lambda x: _xla_convolution(x, kernel), like)(x)[0]
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _xla_kernel_gradient(x: Array, y: Array) -> Array:
    like = ShapeDtypeStruct(_kernel_shape(x, y), x.dtype)
    return jax.linear_transpose(lambda kernel: _xla_convolution(x, kernel), like)(y)[0]


def _pays(x: Array, channels: int) -> bool:
    """Tell whether ``x`` has tiles enough to pay for the transform of a kernel to ``channels``, four times its size."""
    n, height, width, c = x.shape
    return c * channels <= _KERNEL_PER_TILE * n * -(-height // 4) * -(-width // 4)


def _own_convolution(x: Array, kernel: Array, *, turned: bool) -> Array:
    shape = _image_shape(x, kernel, turned=turned)
    if not _pays(x, shape[3]):
        return _xla_convolution(x, kernel, turned=turned)
    return jax.ffi.ffi_call(_CONVOLUTION, ShapeDtypeStruct(shape, jnp.float32))(x, kernel, turned=turned)


def _own_kernel_gradient(x: Array, y: Array) -> Array:
    if not _pays(x, y.shape[3]):
        return _xla_kernel_gradient(x, y)
    return jax.ffi.ffi_call(_KERNEL_GRADIENT, ShapeDtypeStruct(_kernel_shape(x, y), jnp.float32))(x, y)


# What JAX knows of them


def _is_for_one_device(ctx: mlir.LoweringRuleContext) -> bool:
    """Tell whether a program is for one device of this machine. Others may lack the library; XLA cannot split it."""
    context, where = ctx.module_context, ctx.module_context.axis_context
    if context.lowering_parameters.for_export:
        return False
    if isinstance(where, mlir.SPMDAxisContext):
        return set(where.manual_axes) == set(where.mesh.axis_names)
    return isinstance(where, mlir.ShardingContext) and where.num_devices == 1


def _define(primitive: Primitive, shape: Any, xla: Any, own: Any) -> None:
    by_xla, by_library = (mlir.lower_fun(fn, multiple_results=False) for fn in (xla, own))

    def lower_on_cpu(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
        ours = _is_for_one_device(ctx) and missing() is None
        return (by_library if ours else by_xla)(ctx, *operands, **params)

    def batch(operands: tuple[Array, ...], axes: tuple[int | None, ...], **params: Any) -> tuple[Array, int]:
        if primitive is _convolution and axes[1] is None:  # more images of one kernel are images
            x = jnp.moveaxis(operands[0], axes[0] or 0, 0)
            y = primitive.bind(x.reshape(-1, *x.shape[2:]), operands[1], **params)
            return y.reshape(*x.shape[:2], *y.shape[1:]), 0
        return jax.vmap(functools.partial(xla, **params), in_axes=axes)(*operands), 0

    primitive.def_abstract_eval(lambda x, other, **params: x.update(shape=shape(x, other, **params)))
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="turned"))
    mlir.register_lowering(primitive, by_xla)
    mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")
    batching.primitive_batchers[primitive] = batch


_define(_convolution, _image_shape, _xla_convolution, _own_convolution)
_define(_kernel_gradient, _kernel_shape, _xla_kernel_gradient, _own_kernel_gradient)
ad.defbilinear(
    _convolution,
    lambda ct, x, kernel, turned: _convolution.bind(ct, kernel, turned=not turned),
    lambda ct, x, kernel, turned: _kernel_gradient.bind(*((ct, x) if turned else (x, ct))),
)
ad.defbilinear(
    _kernel_gradient,
    lambda ct, x, y: _convolution.bind(y, ct, turned=True),
    lambda ct, x, y: _convolution.bind(x, ct, turned=False),
)


# The library


@functools.cache
def missing() -> str | None:
    """Return why XLA convolves on a CPU, or ``None`` if the library does. The first call compiles it, in seconds.

    Raises:
      ValueError: if ``PSLD_JAX_WINOGRAD`` is ``on`` and it cannot be had, or is another word than the three.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    check_choice(VARIABLE, wanted, ("auto", "on", "off"))
    if wanted == "off":
        return f"{VARIABLE} is off"
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        why = " ".join(str(getattr(error, "stderr", "") or error).split())[:500]
        if wanted == "on":
            raise ValueError(f"{VARIABLE} is on, but {_SOURCE.name} cannot be compiled: {why}") from None
        warnings.warn(
            f"convolutions are XLA's, which take twice the time: {_SOURCE.name} cannot be compiled: {why} "
            f"({VARIABLE}=off leaves this warning out)",
            stacklevel=2,
        )
        return why
    for name in (_CONVOLUTION, _KERNEL_GRADIENT):
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return None


def _compiled() -> Path:
    """Return the library for this source, compiler, jaxlib and processor; compile it first if it is not there."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        raise OSError(f"there is no C++ compiler: {compiler[0]} is not found (CXX in the environment names another)")
    options = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-DNDEBUG", "-isystem", jax.ffi.include_dir()]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    about = _SOURCE.read_text(), version, *compiler, *options, importlib.metadata.version("jaxlib"), _processor()
    path = platformdirs.user_cache_path("psld_jax") / "kernels" / hashlib.sha256(repr(about).encode()).hexdigest()[:32]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder) / "new.so"
            command = [*compiler, *options, str(_SOURCE), "-o", str(new)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
            os.replace(new, path)
    return path


def _processor() -> str:
    """Describe the processor, on which ``-march=native`` depends: machines that share a home directory may differ."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {flags}"
