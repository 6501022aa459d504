"""CUDA without a GPU: tensors that say ``cuda`` on the CPU build of PyTorch.

Modules, none of which imports the product:

- :mod:`~pretended.guard`: a device guard for the type CUDA, compiled on first use.
- :mod:`~pretended.standins`: ``torch.cuda`` as a machine of cards with memory, streams, events and
  page-locked memory.
- :mod:`~pretended.twin`: tensors with real numbers, computed on the CPU. Finds tensors on the
  wrong device, waits of the host, pageable copies, and host memory used during a copy.
- :mod:`~pretended.ghost`: tensors without data, of any size. Counts live memory, FLOPs, launches
  and bytes; finds tensors on the wrong device and products of different dtypes.
- :mod:`~pretended.races`: PyTorch's own stream sanitizer on the streams of the stand-ins.
- :mod:`~pretended.allocator`: a model of PyTorch's caching allocator, for fragmentation.

Not covered: ``.data =`` across devices, workspaces of cuDNN and cuBLAS, the speed of anything.
"""
