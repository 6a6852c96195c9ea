#!/usr/bin/env bash
# Build the Dockerfile's CPU stage for real and run the main job in it, without a Docker engine: debootstrap makes the base
# image, buildah builds and runs.  Needs root, about 25 GB and Debian or Ubuntu.  Why these tools: docs/decisions/image.md.
#
#   IMAGE_TEST_STORAGE  where everything is put, and removed from afterwards (default /tmp/image-storage)
#   IMAGE_TEST_KEEP=1   keep the image, to look at it or to run this again without building
#   TORCH_INDEX         the Dockerfile's argument: an index of PyTorch's CPU wheels
set -euo pipefail
cd "$(dirname "$0")/.."

storage=${IMAGE_TEST_STORAGE:-/tmp/image-storage}
needed_gb=25
say() { printf '\n== %s\n' "$*" >&2; }
fail() { printf 'image-test: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "debootstrap and buildah's chroot isolation need root: sudo make image-test"
for tool in debootstrap buildah; do
    command -v $tool >/dev/null || fail "$tool is missing: apt-get install --no-install-recommends debootstrap buildah"
done
mkdir -p "$storage"
free_gb=$(df --output=avail -BG "$storage" | tail -1 | tr -dc 0-9)
[ "$free_gb" -ge "$needed_gb" ] || fail "$storage has $free_gb GB free, $needed_gb are needed; set IMAGE_TEST_STORAGE"

export BUILDAH_ISOLATION=chroot
buildah() { command buildah --root "$storage/root" --runroot "$storage/runroot" --storage-driver vfs "$@"; }
container=
clean() {
    [ -z "$container" ] || buildah rm "$container" >/dev/null || true
    if [ "${IMAGE_TEST_KEEP:-}" = 1 ]; then say "kept in $storage"; else rm -rf --one-file-system "$storage"; fi
}
trap clean EXIT

# What pip is told on this machine (mirrors, certificates) holds inside the build too.  It travels as a secret and as mounts,
# so nothing of it stays in the image, and nothing of it is written in this repository.
mounts=()
pip_configuration() {
    local key value
    echo "[global]"
    # `pip config list` names the environment first: the first value of a key wins, as it does in pip.
    python3 -m pip config list | sed -nE "s/^(:env:\.|[a-z]+\.)([a-z-]+)='(.*)'\$/\2=\3/p" | awk -F= '!seen[$1]++' |
    while IFS='=' read -r key value; do
        case $key in
            cert) cp "$value" "$storage/certificates.pem"; value=/run/certificates.pem ;;
            index-url | extra-index-url | find-links | trusted-host | proxy | timeout | default-timeout | retries) ;;
            *) continue ;;
        esac
        echo "$key = $value"
    done
}
local_packages() {  # the folders of this machine that pip's configuration names
    local word
    for word in $(sed -nE 's/^(index-url|extra-index-url|find-links) = //p' "$1"); do
        case $word in
            file://*) dirname "${word#file://}" ;;  # an index of files names the files beside it
            /*) echo "$word" ;;
        esac
    done | sort -u
}
pip_configuration >"$storage/pip.conf"
for folder in $(local_packages "$storage/pip.conf"); do
    [ "$folder" = / ] || [ ! -d "$folder" ] || mounts+=(--volume "$folder:$folder:ro")
done
[ ! -f "$storage/certificates.pem" ] || mounts+=(--volume "$storage/certificates.pem:/run/certificates.pem:ro")

if ! buildah inspect --type image iekd-base >/dev/null 2>&1; then
    say "base image, by debootstrap"
    debootstrap --variant=minbase bookworm "$storage/base" >"$storage/debootstrap.log" 2>&1 ||
        { tail -20 "$storage/debootstrap.log"; fail "debootstrap did not succeed"; }
    rm -rf "$storage/base/var/cache/apt/archives/"*.deb
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$storage/base" / >/dev/null
    buildah commit --quiet --rm "$container" iekd-base >/dev/null
    container=
    rm -rf "$storage/base"
fi

if ! buildah inspect --type image iekd-compress >/dev/null 2>&1; then
    say "the Dockerfile's CPU stage"
    # The Docker format, because the other one has no HEALTHCHECK.
    buildah build --format docker --pull-never --target cpu --build-arg BASE=localhost/iekd-base \
        --build-arg TORCH_INDEX="${TORCH_INDEX:-}" --secret "id=pip.conf,src=$storage/pip.conf" "${mounts[@]}" \
        --tag iekd-compress .
fi

say "what the image declares"
declared() { buildah inspect --type image iekd-compress | python3 -c "import json, sys
print(*json.load(sys.stdin)['Docker']['config']$1, sep='\n')"; }
mapfile -t entrypoint < <(declared "['Entrypoint']")
mapfile -t healthcheck < <(declared "['Healthcheck']['Test'][1:]")
echo "entry point: ${entrypoint[*]}; health check: ${healthcheck[*]}"

container=$(buildah from --pull-never iekd-compress)
# HF_HUB_OFFLINE: the job must not need a model hub.
inside() { buildah run --env HF_HUB_OFFLINE=1 --env COLUMNS=160 "$container" -- "$@"; }
status_of() { local status=0; "$@" >&2 || status=$?; echo $status; }

say "not root, and nothing of this machine or of the build left inside"
inside sh -euc '
    id; [ "$(id -u)" != 0 ]
    ! touch /opt/iekd/written 2>/dev/null || { echo "the user can change the installation"; exit 1; }
    [ ! -s /etc/pip.conf ] && [ ! -s /run/certificates.pem ] || { echo "the configuration of pip is in the image"; exit 1; }
    [ ! -e /src/pyproject.toml ] || { echo "the sources are in the image"; exit 1; }' || fail "see above"

say "the health check"
start=$(date +%s%N)
inside "${healthcheck[@]}" || fail "${healthcheck[*]}: status $?"
echo "$((($(date +%s%N) - start) / 1000000)) ms"

say "the main job"
# One epoch of 256 digits is about chance: accuracy says nothing here.  The first limit is one that is kept whatever was learnt, the
# second, one that nothing can keep; so both exit statuses are seen whatever the machine.
job=("${entrypoint[@]}" --teacher resnet18 --student mobilenetv3_small_100 --teacher-weights scratch --student-weights scratch
    --epochs 1 --teacher-epochs 1 --factor-epochs 1 --train-limit 256 --image-size 32
    --bench-seconds 0.2 --threads 1 --out run)
[ "$(status_of inside "${job[@]}" --min-retained 0.01)" = 0 ] || fail "the main job did not end with status 0"
inside python - <<'CHECK' || fail "report.json does not hold"
import hashlib, importlib.metadata, json, pathlib

report = json.loads(pathlib.Path("run/report.json").read_text())
assert report["verdict"]["kept"] is True and report["verdict"]["misses"] == [], report["verdict"]
assert report["verdict"]["min_retained"] == 0.01
for role in ("teacher", "student"):
    model = report[role]
    digest = hashlib.sha256((pathlib.Path("run") / model["file"]).read_bytes()).hexdigest()
    assert digest == model["sha256"], f"{role}: the file is not the one in the report"
    assert model["accuracy"]["total"] > 100 and model["latency"]["iterations"] >= 10
    assert model["verification"]["relative_difference"] <= model["verification"]["tolerance"]
for package, version in report["fingerprint"]["packages"].items():
    assert importlib.metadata.version(package) == version, package
print(report["verdict"]["sentence"])
CHECK

say "the same run against a limit that it cannot keep"
[ "$(status_of inside "${job[@]}" --min-retained 0.01 --max-latency 1us)" = 1 ] || fail "a missed limit did not end with status 1"
inside python - <<'CHECK' || fail "report.json does not name the missed limit"
import json, pathlib

verdict = json.loads(pathlib.Path("run/report.json").read_text())["verdict"]
assert verdict["kept"] is False and verdict["max_latency_ms"] == 0.001 and len(verdict["misses"]) == 1, verdict
print("missed:", *verdict["misses"])
CHECK

say "an image without a runtime is not healthy"
buildah run --user root "$container" -- /opt/iekd/bin/pip uninstall --quiet --yes onnxruntime 2>/dev/null
[ "$(status_of inside "${healthcheck[@]}")" = 3 ] || fail "the health check did not notice that ONNX Runtime is gone"

say "image test passed: $(buildah images --format '{{.Size}}' iekd-compress), $(buildah run "$container" -- python --version)"
