"""The GPU kernels: `kernels` has the names and signatures of the CPU's, `device` the way to CuPy and to csrc/*.cu."""
