"""What the tests share. TensorFlow's log lines are not what they look for."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
