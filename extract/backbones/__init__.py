"""Backbones: from the name that `--module` takes to a frozen function that turns images into feature vectors.

`names` reads a name, one of
- `efficientnet_lite0`, built in (`efficientnet_lite`; `torch_file` reads its weights);
- a short name such as `inception_v3`, which stands for a TensorFlow Hub handle;
- a TensorFlow Hub handle or URL, https://... or gs://... (`hub` finds or downloads it, `archive` unpacks it,
  `saved_model` loads it);
- `keras:NAME`, a network of keras.applications (`keras_applications`);
- the path of a SavedModel: TF2 hub format, TF1 Hub format, or one with a serving signature (`saved_model`).

Each kind of module is loaded as a `network.Network`; `load` freezes that. `serving.save` writes the frozen backbone
into a cache. Importing this package imports no TensorFlow: names can be checked at no cost.
"""

from extract.backbones.backbone import Backbone, load
from extract.backbones.download import UnreachableError
from extract.backbones.names import DEFAULT, identity, short_name

__all__ = ["DEFAULT", "Backbone", "UnreachableError", "identity", "load", "short_name"]
