"""NVRTC by ctypes, from the wheel of the `test` extra or from the system: no driver, no CuPy."""

import ctypes
import sysconfig
from pathlib import Path


def library():
    site = Path(sysconfig.get_paths()["purelib"])
    for path in [*sorted(site.glob("nvidia/**/libnvrtc.so*")), "libnvrtc.so"]:
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None


def compile(source: str, name: str, headers: dict[str, str], options, what: str = "PTX") -> tuple[bytes, str]:
    """(PTX or CUBIN, log); AssertionError with the log where the source does not compile."""
    nvrtc = library()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    texts = [text.encode() for text in headers.values()]
    nvrtc.nvrtcCreateProgram(
        ctypes.byref(program),
        source.encode(),
        name.encode(),
        len(headers),
        (ctypes.c_char_p * len(headers))(*texts),
        (ctypes.c_char_p * len(headers))(*(n.encode() for n in headers)),
    )
    status = nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    )
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    assert status == 0, f"{name}: {log.value.decode()}"
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    result = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, result)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return result.raw, log.value.decode()
