"""Which operations a SavedModel in a cache may have: it is checked before it is loaded, since loading could run code.

TensorFlow runs whatever a graph says, and there are operations that read files, write them, connect to servers and call
Python. A backbone needs arithmetic only. TensorFlow declares for each operation whether it is stateful: whether it
depends on anything but its inputs, or changes anything. Stateless operations are allowed, except a few that reach
outside the program nevertheless; stateful ones are refused, except a few that stay inside it. So operations of later
versions of TensorFlow are judged by what they declare, and any network of ordinary layers passes, whoever made it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework import op_def_registry

from cache.errors import CacheError, first_line

_FILE = "saved_model.pb"
_OTHER_FORMS = ("saved_model.cpb", "saved_model.pbtxt")  # which some versions of TensorFlow would load instead
_LARGEST = 1 << 31  # bytes of a protocol buffer

# Stateful, and inside the program: calls and control flow (the functions that they call are checked too), assertions,
# random numbers (of a dropout that is off), and the variables, arrays and tables of a graph.
_INSIDE = re.compile(
    r"StatefulPartitionedCall|If|While|Case|Assert|CheckNumerics(V2)?|GuaranteeConst|Empty|DeepCopy"
    r"|RandomUniform(Int)?|RandomStandardNormal|TruncatedNormal|RandomShuffle|Multinomial|StatelessRandomGetAlg"
    r"|VarHandleOp|VarIsInitializedOp|(Read|Assign|AssignAdd|AssignSub)VariableOp|VariableShape|DisableCopyOnRead"
    r"|ResourceGather(Nd)?|TensorArray\w*V3|(Mutable)?HashTable(OfTensors)?V2|LookupTable\w+V2|InitializeTableV2"
)
# Declared stateless, but reaching outside: files and memory by name, Python, pipelines and their files, descriptions of
# protocol buffers in files, debuggers that write to a URL, other compilers and devices.
_OUTSIDE = re.compile(
    r"ReadFile|MatchingFiles|ImmutableConst|GenerateVocabRemapping|PyFunc\w*|EagerPyFunc|\w*Dataset\w*|\w*Iterator\w*"
    r"|\w*Reader\w*|EncodeProto|DecodeProto\w*|Debug\w*|Copy(Host|ToMesh\w*)?|RemoteCall|SymbolicGradient"
    r"|_?(Xla|TPU|Tpu|DTensor|Mlir)\w*|\w*(CustomCall|Infeed|Outfeed|Rpc)\w*"
)
# Every SavedModel has these in the functions that save and restore its variables. A backbone has no variables, so
# loading it never runs them.
_SAVER = {"SaveV2", "RestoreV2", "MergeV2Checkpoints"}


def check(folder: Path) -> None:
    """Raises CacheError if `folder` is no SavedModel, or one with an operation that reaches outside the program."""
    graph = _read(folder)
    functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
    saver_functions = _saver_functions(graph)
    for name, nodes in [("", graph.graph_def.node), *functions.items()]:
        for node in nodes:
            is_call = node.op in functions  # whose own nodes are checked
            is_saver = name in saver_functions and node.op in _SAVER
            if not (is_call or is_saver or is_inside(node.op)):
                raise CacheError(
                    f"the backbone in {folder} is not loaded: its operation {node.op[:100]!a} reaches outside the "
                    "program, and may touch files or run code; delete the folder and run the extraction again"
                )


def is_inside(op: str) -> bool:
    """Whether an operation of this name does nothing but compute."""
    known = op_def_registry.get(op)
    if known is None:
        return False
    return bool(_INSIDE.fullmatch(op)) if known.is_stateful else not _OUTSIDE.fullmatch(op)


def _read(folder: Path) -> MetaGraphDef:
    try:
        if (folder / _FILE).stat().st_size >= _LARGEST:
            raise ValueError("larger than a SavedModel may be")
        if others := [name for name in _OTHER_FORMS if (folder / name).exists()]:
            raise ValueError(f"{others[0]} stands beside {_FILE}")
        graphs = SavedModel.FromString((folder / _FILE).read_bytes()).meta_graphs
        # TensorFlow 1's loader would run operations that the file names.
        if len(graphs) != 1 or not graphs[0].HasField("object_graph_def"):
            raise ValueError("not written by TensorFlow 2")
        return graphs[0]
    except (OSError, ValueError, DecodeError) as error:
        raise CacheError(
            f"cannot load the backbone in {folder} ({first_line(error)}); delete it and run the extraction again"
        ) from None


def _saver_functions(graph: MetaGraphDef) -> set[str]:
    """The functions that save and restore variables, and that nothing else in the file calls."""
    entries = {graph.saver_def.save_tensor_name.partition(":")[0], graph.saver_def.restore_op_name}
    inside = [node for node in graph.graph_def.node if node.name in entries]
    outside = [node for node in graph.graph_def.node if node.name not in entries]
    outside += [node for function in graph.graph_def.library.function for node in function.node_def]
    return set(_called(inside)) - set(_called(outside)) - set(graph.object_graph_def.concrete_functions)


def _called(nodes: Iterable[NodeDef]) -> Iterator[str]:
    """The names of the functions that nodes call or refer to."""
    for node in nodes:
        yield node.op
        for value in node.attr.values():
            for function in (value.func, *value.list.func):
                yield function.name
