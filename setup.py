"""Build the compiled extensions, and the SIMD micro-kernels once per CPU tier. Metadata lives in pyproject.toml."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CONFIGS = Path("configs")
KERNELS = Path("entrenar/_kernels")
SIMD = KERNELS / "simd"
CALLS = KERNELS / "team_calls.c"
COVERAGE = os.environ.get("ENTRENAR_COVERAGE") == "1"  # `make coverage`: extensions that count their lines for gcov
X86 = platform.machine().lower() in {"x86_64", "amd64", "i686"}
V3 = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2"]
V4 = [*V3, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
# Features, never CPU names: the wheel runs anywhere and picks a tier at import.
TIERS = {"base": []} | ({"v3": V3, "v4": V4, "v4i": [*V4, "-mavx512vnni", "-mavx512vbmi"]} if X86 else {})
EXTRA_SOURCES = {
    "entrenar._kernels.cpu": ["entrenar/_kernels/scratch.c", "entrenar/_kernels/team.c"],
    "entrenar.autograd.tensor": ["entrenar/autograd/allocator.c"],
    "entrenar.io.mapped": ["entrenar/io/sigbus.c"],
}
COMMON = ["-std=gnu11", "-fno-math-errno", "-ffp-contract=fast", "-fvisibility=hidden", "-fPIC", "-Wall", "-Wno-psabi"]
COMMON += ["--coverage"] if COVERAGE else []


def has_openmp(compiler: list[str]) -> bool:
    """Whether the C compiler is a GCC for Linux with OpenMP, whose calls team_calls.c answers (else: one thread)."""
    program = "#if !defined(__linux__) || defined(__clang__)\n#error\n#endif\n#include <omp.h>\n"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(program)
        command = [*compiler, "-fopenmp", "-c", str(source), "-o", str(Path(folder, "probe.o"))]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def extensions() -> list[Extension]:
    """One Extension for each .pyx below entrenar/; only `cpu` links the SIMD objects (see BuildExt)."""
    headers = [str(path) for path in sorted(Path("entrenar").rglob("*.h"))]
    found = []
    for source in sorted(Path("entrenar").rglob("*.pyx")):
        name = ".".join(source.with_suffix("").parts)
        depends = [*headers, str(CALLS)]
        sources = [str(source)]
        sources += EXTRA_SOURCES.get(name, [])
        if name == "entrenar._kernels.cpu":
            depends += [str(path) for path in sorted(SIMD.rglob("*.c"))]
        found.append(
            Extension(name, sources, include_dirs=[str(KERNELS), "entrenar/autograd", "entrenar/io"], depends=depends)
        )
    return found


class BuildExt(build_ext):
    """build_ext that compiles each simd/*.c once per tier, with that tier's flags, into a folder of its own."""

    def build_extensions(self) -> None:
        self.parallel = self.parallel or os.cpu_count()
        openmp = ["-fopenmp"] if has_openmp(self.compiler.compiler_so[:1]) else []
        if not openmp:
            print(
                "entrenar: the C compiler is no GCC with OpenMP; building the single-threaded package", file=sys.stderr
            )
        objects = self.simd_objects()
        calls = self.compiler.compile(
            [str(CALLS)] if openmp else [],
            output_dir=self.build_temp,
            include_dirs=self.include_dirs,
            extra_postargs=["-O2", *COMMON],
        )
        for extension in self.extensions:
            extension.extra_compile_args = ["-O2", "-g0", *COMMON[1:], *openmp, "-Wno-unused-function"]
            extension.extra_objects = calls
            extension.extra_link_args = ["--coverage"] if COVERAGE else []
            if extension.name == "entrenar._kernels.cpu":
                extension.extra_objects = [*objects, *calls]
        super().build_extensions()

    def simd_objects(self) -> list[str]:
        """Compile what is out of date and return every object file."""
        # the flags stand in this file
        headers = max(path.stat().st_mtime for path in [*SIMD.rglob("*.h"), Path(__file__)])
        jobs, objects = [], []
        for tier, flags in TIERS.items():
            folder = Path(self.build_temp, "simd", tier)
            folder.mkdir(parents=True, exist_ok=True)
            for source in sorted(SIMD.rglob("*.c")):
                target = folder / f"{source.stem}.o"
                objects.append(str(target))
                if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime, headers):
                    jobs.append((source, target, [f"-DTIER={tier}", *flags]))
        compiler = [part for part in self.compiler.compiler_so[:1] if part]

        def compile_one(job: tuple[Path, Path, list[str]]) -> None:
            source, target, flags = job
            command = [
                *compiler,
                "-O3",
                "-g0",
                *COMMON,
                *flags,
                "-I",
                str(KERNELS),
                "-c",
                str(source),
                "-o",
                str(target),
            ]
            print(" ".join(command))
            subprocess.run(command, check=True)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, jobs))
        return objects


class BuildPy(build_py):
    """build_py that puts the configurations into the package, which finds them by name (entrenar/config.py)."""

    def run(self) -> None:
        super().run()
        for source in () if self.editable_mode else sorted(CONFIGS.rglob("*.toml")):
            target = Path(self.build_lib, "entrenar", source)
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))


# Bounds checks and negative indices stay on: kernels index pointers, and Python lists deserve them.
DIRECTIVES = {
    "language_level": 3,
    "cdivision": True,
    "embedsignature": True,
    "binding": True,
}
setup(
    ext_modules=cythonize(
        extensions(),
        build_dir="build/cython",
        nthreads=os.cpu_count() or 1,
        compiler_directives=DIRECTIVES,
    ),
    cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
)
