"""The service: photos in over HTTP, bottlenecks or labels out.

`run` is the flow. A request goes through `app` (who may ask, is there room) to an endpoint of one of the `protocols`,
which turns its body into images and calls an operation of `service`. There each image is checked (`images`), decoded
and run in a batch with those of other requests (`batcher`); heads, which are files (`heads`), turn bottlenecks into
probabilities. Importing this package imports no TensorFlow.
"""
