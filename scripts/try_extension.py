"""The compiled extension of an installed wheel loads without torch and has its functions; cibuildwheel runs this."""

import ctypes.util
import importlib.util
from pathlib import Path

ctypes.CDLL(ctypes.util.find_library("gomp") or "libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
package = importlib.util.find_spec("pope_kernels")
(file,) = Path(package.submodule_search_locations[0]).glob("_C.*.so")
spec = importlib.util.spec_from_file_location("_C", file)
extension = importlib.util.module_from_spec(spec)
spec.loader.exec_module(extension)
assert extension.use_isa("baseline")
assert extension.use_isa("auto")
print(file.name, extension.isa(), extension.compiler)
