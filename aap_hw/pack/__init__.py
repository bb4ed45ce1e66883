"""A pack: compiled kernels and networks in a folder that travels to a device, with a program that times them there.

For devices that no connection reaches. ``folder`` writes and reads it; ``run`` is the program, ``timing`` its work and
``beside`` what PyTorch makes of the same networks. These three, and what they import of ``aap_hw``, are copied into the
folder: there they run with NumPy and TVM's run time alone.
"""
