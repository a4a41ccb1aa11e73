"""A stand-in for CUDA's streams, events and graphs on the CPU, strict about what a GPU would forgive most of the time.

Operations run at once and in program order, so numbers are those of the CPU. What the stand-in adds:

- Order. Every stream has a vector clock. Two uses of one memory on two streams, one of them a write, must be ordered by
  an event; so must the last use of freed memory and the next allocation of its stream (`Race`).
- Capture. A captured step is not taken: what it wrote is put back. No host reads, no work outside the capture, every
  forked stream joined at the end (`CaptureError`).
- Host. Numbers that a stream copies to the host are read after an event of that stream (`Race`); what is read from the
  device itself waits for the current stream, and is counted.
- Replay. The recorded operations run again, on the same tensors. Everything that the host decided is frozen, and memory
  of other graphs of the same pool is overwritten with NaN first.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from lgfast.data import ahead, eval_loader, resident_loader
from lgfast.guidance.teacher import Teacher, teacher_stream
from lgfast.step import graph, reading, train_step

HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


class Race(AssertionError):
    """Nothing orders two uses of one memory."""


class CaptureError(RuntimeError):
    """CUDA would have refused to capture this."""


class Event:
    """Orders streams after the work that a stream had when it was recorded."""

    def __init__(self, *args, **kwargs):
        self.clock, self.capture = Counter(), None

    def record(self, stream=None):
        stream = stream or Stream.current
        self.clock, self.capture = stream.clock | FakeCuda.instance.host, stream.capture

    def synchronize(self):
        FakeCuda.instance.host |= self.clock

    def query(self):
        """The device is as late as can be: done is what the host has waited for."""
        return self.clock <= FakeCuda.instance.host

    def wait(self, stream=None):
        stream = stream or Stream.current
        if stream.capture is not self.capture:
            if stream.capture is not None or not self.capture.is_open:
                raise CaptureError("a capture waits for an event from outside, or the other way round")
            stream.capture = self.capture
            self.capture.streams.append(stream)
        stream.clock |= self.clock | FakeCuda.instance.host


class Stream:
    """Work in order. `clock[s]`: how much of the work of stream s is done before what comes next here."""

    current: Stream

    def __init__(self, device=None, priority=0):
        self.clock, self.capture, self.priority = Counter(), None, priority
        FakeCuda.instance.streams.append(self)

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        event.wait(self)

    def wait_stream(self, other):
        self.wait_event(other.record_event())


@contextlib.contextmanager
def on(stream):
    """torch.cuda.stream"""
    before, Stream.current = Stream.current, stream
    try:
        yield
    finally:
        Stream.current = before


@dataclass
class Memory:
    """A storage: who allocated it, and who used it when."""

    origin: Stream
    graph: Graph | None = None  # whose capture allocated it
    is_host: bool = False  # pinned: a stream writes it, the host reads it without waiting for anything
    ref: weakref.ref | None = None
    written: tuple[Stream, int] | None = None
    read: dict[Stream, int] = field(default_factory=dict)
    recorded: set[Stream] = field(default_factory=set)  # Tensor.record_stream
    freed: Counter | None = None  # what the recorded streams waited for by then, and the allocator now waits for

    def uses(self) -> list[tuple[Stream, int]]:
        return [*self.read.items(), *([self.written] if self.written else [])]


class Graph:
    """torch.cuda.CUDAGraph"""

    def __init__(self):
        self.tape, self.owned, self.outside = [], [], {}  # outside: storage -> what it held before the capture
        self.streams, self.is_open, self.pool_id = [], False, object()

    def pool(self):
        return self.pool_id

    def replay(self):
        FakeCuda.instance.replay(self)


class FakeCuda(TorchDispatchMode):
    """Watches every operation while it is entered; see the module."""

    instance: FakeCuda

    def __init__(self):
        super().__init__()
        self.memories, self.freed = {}, defaultdict(list)
        self.streams, self.graphs, self.opened = [], [], None
        self.host = Counter()  # what the host has waited for
        self.num_waits = 0  # reads of the device by the host
        FakeCuda.instance = self
        Stream.current = Stream()

    @classmethod
    def ignore_compile_internals(cls):
        """torch.compile works under the stand-in; only the backend "eager" runs what it can watch."""
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, stream, capture = kwargs or {}, Stream.current, self.opened
        if capture and func.overloadpacket.__name__ in HOST_READS:
            raise CaptureError(f"{func} reads back to the host")
        if capture and stream.capture is not capture:
            raise CaptureError(f"{func} runs on a stream outside the capture")
        if func.overloadpacket.__name__ in HOST_READS:
            self.read_back(args[0])
        inputs, changed = tensors(args, kwargs), mutated(func, args, kwargs)
        for x in inputs:
            self.memory(x)
        if capture:
            self.keep_contents(changed)
        result = func(*args, **kwargs)
        known = {key(x) for x in inputs}
        created = [x for x in tensors(result) if key(x) not in known]
        if capture:
            capture.tape.append((func, args, kwargs, result, created))
        if created:
            self.reuse_freed(stream)
        for x in created:
            self.memory(x, capture).is_host = is_copy_to_host(func, kwargs)
            if capture:
                capture.owned.append(x.untyped_storage())
        if not func.is_view:
            self.begin(stream)
            self.use(func, inputs, [*changed, *created])
        return result

    def begin(self, stream: Stream) -> None:
        """Enqueue an operation."""
        stream.clock |= self.host
        stream.clock[stream] += 1

    def use(self, what, inputs: list[Tensor], changed: list[Tensor]) -> None:
        """The current stream reads and writes."""
        for x in inputs:
            self.touch(self.memory(x), what, writes=False)
        for x in changed:
            self.touch(self.memory(x), what, writes=True)

    def memory(self, tensor: Tensor, capture: Graph | None = None) -> Memory:
        """Of a tensor; what was there before anything was watched counts as allocated here and now."""
        name = key(tensor)
        if name not in self.memories:
            memory = self.memories[name] = Memory(Stream.current, capture)
            memory.ref = weakref.ref(tensor.untyped_storage(), lambda _: self.free(name, memory))
        return self.memories[name]

    def read_back(self, tensor: Tensor) -> None:
        """The host reads numbers."""
        memory = self.memory(tensor)
        if not memory.is_host:
            self.num_waits += 1
        elif memory.written and self.host[memory.written[0]] < memory.written[1]:
            raise Race("the host reads numbers whose copy it has not waited for")

    def touch(self, memory: Memory, what, writes: bool) -> None:
        stream = Stream.current
        for other, time in memory.uses() if writes else filter(None, [memory.written]):
            if stream.clock[other] < time:
                raise Race(f"{what}: nothing orders it after another stream's use of the same memory")
        if writes:
            memory.written, memory.read = (stream, stream.clock[stream]), {}
        else:
            memory.read[stream] = stream.clock[stream]

    def free(self, name: int, memory: Memory) -> None:
        memory.freed = functools.reduce(operator.or_, (stream.clock for stream in memory.recorded), Counter())
        self.freed[memory.origin].append(self.memories.pop(name))

    def reuse_freed(self, stream: Stream) -> None:
        """An allocation may get any memory that was freed on its stream."""
        for memory in self.freed.pop(stream, ()):
            if any((stream.clock | self.host | memory.freed)[other] < time for other, time in memory.uses()):
                raise Race("memory is reused that another stream may still be using")

    def record_stream(self, tensor: Tensor, stream: Stream) -> None:
        """torch.Tensor.record_stream"""
        self.memory(tensor).recorded.add(stream)

    def synchronize(self) -> None:
        """torch.cuda.synchronize"""
        self.host = functools.reduce(operator.or_, (stream.clock for stream in self.streams), self.host)

    # ---- graphs ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def capture(self, graph, pool=None, stream=None, capture_error_mode="global"):
        """torch.cuda.graph"""
        self.synchronize()
        graph.pool_id, graph.streams, graph.is_open = pool or graph.pool_id, [stream], True
        self.opened, stream.capture, random = graph, graph, torch.get_rng_state()
        try:
            with on(stream):
                yield
        except CaptureError:
            Stream.current = stream  # as CUDA's leaves it
            raise
        finally:
            self.opened, graph.is_open = None, False
            torch.set_rng_state(random)
            with _disable_current_modes():
                for storage, content in graph.outside.values():
                    storage.copy_(content)
                graph.outside.clear()
                poison(graph)
            for joined in graph.streams:
                joined.capture = None
                if stream.clock[joined] < joined.clock[joined]:
                    raise CaptureError("a forked stream is not joined when the capture ends")
            self.synchronize()  # nothing of it has run
        self.graphs.append(graph)

    def keep_contents(self, changed: list[Tensor]) -> None:
        for x in changed:
            if self.memory(x).graph is not self.opened and key(x) not in self.opened.outside:
                with _disable_current_modes():
                    self.opened.outside[key(x)] = (x.untyped_storage(), x.untyped_storage().clone())

    def replay(self, graph: Graph) -> None:
        self.begin(Stream.current)
        with _disable_current_modes(), torch.no_grad():
            for other in self.graphs:
                if other is not graph and other.pool_id is graph.pool_id:
                    poison(other)
            for func, args, kwargs, result, created in graph.tape:
                again, fresh = func(*args, **kwargs), {id(x) for x in created}
                for old, new in zip(tensors(result), tensors(again), strict=True):
                    if id(old) in fresh:
                        old.copy_(new)
                if not func.is_view:
                    self.use(func, tensors(args, kwargs), [*mutated(func, args, kwargs), *created])


@contextlib.contextmanager
def fake_cuda(monkeypatch):
    """Steps, teachers and loaders on the CPU take the way they take on a GPU."""
    cuda, start, gpu = FakeCuda(), Teacher.__init__, torch.device("cuda")
    for name, stand_in in {
        "Stream": Stream,
        "Event": Event,
        "stream": on,
        "current_stream": lambda device=None: Stream.current,
        "current_device": lambda: 0,
        "synchronize": cuda.synchronize,
        "CUDAGraph": Graph,
        "graph": cuda.capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    tolist = Tensor.tolist  # nothing is dispatched
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: cuda.read_back(tensor) or tolist(tensor))
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: cuda.record_stream(tensor, stream))

    def start_teacher(teacher, *args, concurrent=True, **kwargs):
        start(teacher, *args, **kwargs)
        teacher._stream = teacher_stream(gpu) if concurrent else None

    monkeypatch.setattr(Teacher, "__init__", start_teacher)
    mark = reading.mark
    monkeypatch.setattr(reading, "mark", lambda device: mark(gpu))
    obstacle, one_ahead = graph.graph_obstacle, ahead.ahead
    monkeypatch.setattr(train_step, "graph_obstacle", lambda device, *parts: obstacle(gpu, *parts))
    for module in (resident_loader, eval_loader):
        monkeypatch.setattr(module, "ahead", lambda steps, make, device: one_ahead(steps, make, gpu))
    for cached in (graph.capture_stream, ahead.loading_stream, teacher_stream):
        cached.cache_clear()
    graph._graphs.clear()
    with cuda:
        yield cuda
    for cached in (graph.capture_stream, ahead.loading_stream, teacher_stream):
        cached.cache_clear()
    graph._graphs.clear()


def poison(graph: Graph) -> None:
    """What others in the pool leave: NaN, and numbers far outside."""
    for storage in graph.owned:
        storage.fill_(0xFF)


def is_copy_to_host(func, kwargs) -> bool:
    to_host = kwargs.get("device") == torch.device("cpu") and kwargs.get("non_blocking", False)
    return func.overloadpacket.__name__ == "_to_copy" and to_host


def key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensors(*tree) -> list[Tensor]:
    """The tensors in what an operation takes or gives. (pytree, which knows more containers, takes far longer.)"""
    found = []
    for x in tree:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (list, tuple, dict)):
            found += tensors(*(x.values() if isinstance(x, dict) else x))
    return found


@functools.cache
def parameters_of(func) -> tuple[list[str], set[str]]:
    """The names of an operation's parameters, and of those that its schema says it writes."""
    parameters = func._schema.arguments
    return [p.name for p in parameters], {p.name for p in parameters if p.alias_info and p.alias_info.is_write}


def mutated(func, args, kwargs) -> list[Tensor]:
    """The arguments that the operation writes: its schema says it, but for the statistics of BatchNorm."""
    names, written = parameters_of(func)
    is_norm = func.overloadpacket.__name__ == "native_batch_norm"
    if not written and not is_norm:
        return []
    values = dict(zip(names, args, strict=False)) | kwargs
    if is_norm and values["training"]:
        written = written | {"running_mean", "running_var"}
    return tensors([values.get(name) for name in written])
