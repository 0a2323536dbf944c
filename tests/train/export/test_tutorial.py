"""The classifier in the tutorial's forms: the same probabilities as the SavedModel's."""

import numpy as np
import pytest
import tensorflow as tf

from cache.errors import UserError
from train.export import tutorial


def inputs_of(world, paths):
    """The photos as the network gets them: float32 [N, H, W, 3] in [0, 1]."""
    backbone = tf.saved_model.load(str(world[1].backbone_dir))
    return np.stack([backbone.decode(path.read_bytes()).numpy() for path in paths]).astype(np.float32) / 255


def test_the_tutorials_forms_give_the_same_probabilities(world, model, photos, tmp_path):
    _, opened, result = world
    paths = photos[:5]
    inputs = inputs_of(world, paths)
    expected = model.classify([path.read_bytes() for path in paths])["probabilities"].numpy()

    tutorial.frozen_graph(opened, "final_result")(tmp_path / "new" / "graph.pb", result.head)
    graph_def = tf.compat.v1.GraphDef.FromString((tmp_path / "new" / "graph.pb").read_bytes())
    assert not graph_def.library.function
    assert not {node.op for node in graph_def.node} & {
        "VarHandleOp",
        "Variable",
        "VariableV2",
        "ReadVariableOp",
    }
    assert [node.name for node in graph_def.node if node.op == "Placeholder"] == ["Placeholder"]
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        assert graph.get_tensor_by_name("Placeholder:0").shape.as_list() == [None, 8, 6, 3]
        with tf.compat.v1.Session(graph=graph) as session:
            found = session.run("final_result:0", {"Placeholder:0": inputs})
    np.testing.assert_allclose(found, expected, atol=1e-6)

    tutorial.write_saved_model(tmp_path / "tutorial", opened, result.head)
    signature = tf.saved_model.load(str(tmp_path / "tutorial")).signatures["serving_default"]
    np.testing.assert_allclose(signature(image=tf.constant(inputs))["prediction"], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["Placeholder_of_mine", "softmax/final", "Softmax", "MatMul"])
def test_the_output_of_the_frozen_graph_has_the_name_that_was_asked_for(world, tmp_path, name):
    _, opened, result = world
    tutorial.frozen_graph(opened, name)(tmp_path / "graph.pb", result.head)
    graph_def = tf.compat.v1.GraphDef.FromString((tmp_path / "graph.pb").read_bytes())
    (output,) = {node.name for node in graph_def.node} - {
        i.split(":")[0] for node in graph_def.node for i in node.input
    }
    assert output == name


def test_a_checkpoint_holds_the_head(world, tmp_path):
    _, _, result = world
    tutorial.write_checkpoint(tmp_path / "new" / "layer", result.head)
    reader = tf.train.load_checkpoint(str(tmp_path / "new" / "layer"))
    values = {name.split("/")[0]: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    np.testing.assert_array_equal(values["weights"], result.head.weights)
    np.testing.assert_array_equal(values["biases"], result.head.biases)


def test_a_place_that_cannot_be_written_is_named(world, tmp_path):
    _, opened, result = world
    (tmp_path / "file").write_text("")
    for write in (
        lambda: tutorial.write_saved_model(tmp_path / "file" / "model", opened, result.head),
        lambda: tutorial.frozen_graph(opened, "final_result")(tmp_path / "file" / "graph.pb", result.head),
        lambda: tutorial.write_checkpoint(tmp_path / "file" / "layer", result.head),
    ):
        with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/"):
            write()
