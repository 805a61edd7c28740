"""A stand-in for `pycuda`, honest about bytes: what engines.tensorrt calls, and no more.

Work on a stream is done when the stream is synchronised, in order and not before, so a result that is read too early is
wrong. Memory begins as noise. What CUDA punishes raises: a call without a current context, memory that was freed or is
too small, an asynchronous copy of host memory that is not page-locked.
"""

from __future__ import annotations

import itertools
import types
from typing import Any, Callable

import numpy as np


class Error(Exception):
    pass


class LogicError(Error):
    pass


class MemoryError(Error):  # noqa: A001
    pass


class Gpu:
    """The state of the one GPU, and the modules `pycuda` and `pycuda.driver` that work on it."""

    def __init__(self, name: str = "Xavier", capability: tuple[int, int] = (7, 2), memory: int = 1 << 30) -> None:
        self.name, self.capability, self.free, self.total = name, capability, memory, memory
        self.count = 1
        self.contexts: list[Any] = []
        self.allocations: dict[int, np.ndarray] = {}
        self.page_locked: list[np.ndarray] = []
        self.streams: dict[int, Any] = {}
        self.clock = 0.0  # ms; each piece of work takes 1
        self.synchronised = 0
        self._numbers = itertools.count(0x10000, 0x10000)
        gpu = self

        class Context:
            def __init__(self) -> None:
                self.is_alive = True

            def push(self) -> None:
                if not self.is_alive:
                    raise LogicError("cuCtxPushCurrent failed: invalid device context")
                gpu.contexts.append(self)

            @staticmethod
            def pop() -> None:
                if not gpu.contexts:
                    raise LogicError("cuCtxPopCurrent failed: invalid device context")
                gpu.contexts.pop()

        class Device:
            def __init__(self, number: int) -> None:
                if number >= gpu.count:
                    raise LogicError("cuDeviceGet failed: invalid device ordinal")

            @staticmethod
            def count() -> int:
                return gpu.count

            def name(self) -> str:
                return gpu.name

            def compute_capability(self) -> tuple[int, int]:
                return gpu.capability

            def retain_primary_context(self) -> Context:
                return gpu.primary

        class DeviceAllocation:
            def __init__(self, size: int) -> None:
                self._address: int | None = next(gpu._numbers)
                noise = np.random.default_rng(self._address).integers(0, 256, size, np.uint8)
                gpu.allocations[self._address] = noise
                gpu.free -= size

            def __int__(self) -> int:
                if self._address is None:
                    raise LogicError("this memory was freed")
                return self._address

            def free(self) -> None:
                gpu.require_context()
                gpu.free += len(gpu.allocations.pop(int(self)))
                self._address = None

        class Stream:
            def __init__(self) -> None:
                gpu.require_context()
                self.handle = next(gpu._numbers)
                self.queue: list[Callable[[], None]] = []
                gpu.streams[self.handle] = self

            def synchronize(self) -> None:
                gpu.require_context()
                gpu.synchronised += 1
                while self.queue:
                    self.queue.pop(0)()

        class Event:
            def __init__(self) -> None:
                gpu.require_context()
                self.time: float | None = None

            def record(self, stream: Stream) -> Event:
                self.time = None
                stream.queue.append(lambda: setattr(self, "time", gpu.clock))
                return self

            def time_till(self, other: Event) -> float:
                gpu.require_context()
                if self.time is None or other.time is None:
                    raise LogicError("cuEventElapsedTime failed: device not ready")
                return other.time - self.time

        def mem_alloc(size: int) -> DeviceAllocation:
            gpu.require_context()
            if size > gpu.free:
                raise MemoryError("cuMemAlloc failed: out of memory")
            return DeviceAllocation(size)

        def mem_get_info() -> tuple[int, int]:
            gpu.require_context()
            return gpu.free, gpu.total

        def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            gpu.require_context()
            array = np.empty(shape, dtype)
            array.view(np.uint8)[...] = np.random.default_rng(0).integers(0, 100, array.view(np.uint8).shape)
            gpu.page_locked.append(array)
            return array

        def memcpy_htod(dest: DeviceAllocation, src: np.ndarray) -> None:
            gpu.require_context()
            gpu.memory(int(dest))[: src.nbytes] = src.reshape(-1).view(np.uint8)

        def memcpy_htod_async(dest: DeviceAllocation, src: np.ndarray, stream: Stream) -> None:
            gpu.enqueue_copy(stream, int(dest), src, to_host=False)

        def memcpy_dtoh_async(dest: np.ndarray, src: DeviceAllocation, stream: Stream) -> None:
            gpu.enqueue_copy(stream, int(src), dest, to_host=True)

        self.primary = Context()
        self.driver = types.ModuleType("pycuda.driver")
        for each in (
            *(Error, LogicError, MemoryError, Context, Device, Stream, Event),
            *(mem_alloc, mem_get_info, pagelocked_empty, memcpy_htod, memcpy_htod_async, memcpy_dtoh_async),
        ):
            setattr(self.driver, each.__name__, each)
        self.driver.init = lambda: None  # type: ignore[attr-defined]
        self.driver.get_version = lambda: (11, 4, 0)  # type: ignore[attr-defined]
        self.package = types.ModuleType("pycuda")
        self.package.driver = self.driver  # type: ignore[attr-defined]

    def require_context(self) -> None:
        if not self.contexts:
            raise LogicError("invalid device context: no currently active context?")

    def enqueue(self, stream: Any, work: Callable[[], None]) -> None:
        def timed() -> None:
            work()
            self.clock += 1.0

        stream.queue.append(timed)

    def enqueue_copy(self, stream: Any, address: int, host: np.ndarray, to_host: bool) -> None:
        self.require_context()
        if not any(host is each for each in self.page_locked) or not host.flags.c_contiguous:
            raise LogicError("an asynchronous copy needs page-locked, contiguous memory")
        if host.nbytes > len(self.memory(address)):
            raise LogicError("cuMemcpyAsync failed: invalid argument")

        def copy() -> None:
            device, flat = self.memory(address), host.reshape(-1).view(np.uint8)
            if to_host:
                flat[...] = device[: len(flat)]
            else:
                device[: len(flat)] = flat

        self.enqueue(stream, copy)

    def memory(self, address: int) -> np.ndarray:
        """The bytes behind an address."""
        if address not in self.allocations:
            raise LogicError("an illegal memory access was encountered")
        return self.allocations[address]
