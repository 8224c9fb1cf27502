#!/usr/bin/env bash
# Are the images good? Builds both and runs the stack from them, with no Docker, no engine and no registry of images:
# buildah in chroot isolation, on a Debian root that debootstrap makes under the base image's name.
#
#   sudo deploy/verify.sh               prints each step; the last line is JSON
#
# Settings, by environment:
#   TORCH=cpu|cuda     of the worker's image; unset: cpu where PyTorch's index of CPU builds answers, else cuda
#   WEIGHTS_DIR=DIR    weights files for the worker; unset: the network that comes with Kernelscope
#   WORK=DIR           keep everything there (some 25 GB), and build only what is not there yet; unset: a temporary folder
#
# The containers have a network of their own without a way out, a read-only root, an empty /tmp, no capabilities, no new
# privileges, the user, command, health check and stop signal of their image.
set -euo pipefail
cd "$(dirname "$0")/.."

BASE=docker.io/library/python:3.12-slim
REDIS=docker.io/library/redis:7-alpine
REDIS_PASSWORD='a/b#c?d%2b@e:f'
# The command of docker-compose.yml.
REDIS_SCRIPT='password=$(printf %s "$REDISCLI_AUTH" | sed '\''s/["\\]/\\&/g'\'')
exec redis-server - <<END
dir /data
appendonly yes
appendfsync always
save ""
hash-max-ziplist-value 2048
maxmemory 6gb
maxmemory-policy noeviction
requirepass "$password"
END'

say() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() { say "FAILED: $*"; exit 1; }
now() { date +%s.%N; }
since() { awk -v begin="$1" -v end="$(now)" 'BEGIN { printf "%.1f", end - begin }'; }
b() { buildah --storage-driver vfs --root "$WORK/storage" --runroot "$WORK/run" "$@"; }
note() { printf '"%s": %s\n' "$1" "$2" >> "$WORK/figures"; }

# --- building --------------------------------------------------------------------------------------------------------

have() { b inspect --type image "$1" > /dev/null 2>&1; }
megabytes() { # of one image's files
    local container folder
    container=$(b from --pull-never "$1")
    folder=$(b mount "$container")
    du --summarize --bytes "$folder" | awk '{ printf "%.0f", $1 / 1e6 }'
    b rm "$container" > /dev/null
}

base() { # a Debian with Python, as small as it comes
    have "$BASE" && return
    local site suite container folder
    . /etc/os-release
    suite=$VERSION_CODENAME
    # shellcheck disable=SC2016
    site=$(apt-get indextargets --format '$(SITE) $(RELEASE)' | awk -v suite="$suite" '$2 == suite { print $1; exit }')
    say "base: Debian $suite by debootstrap, as $BASE"
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv "$suite" "$WORK/debian" "$site" \
        > "$WORK/debootstrap.log" 2>&1 || { tail -5 "$WORK/debootstrap.log" >&2; die "debootstrap"; }
    container=$(b from scratch)
    folder=$(b mount "$container")
    cp --archive "$WORK/debian/." "$folder/"
    rm -rf "$folder/var/cache/apt/archives"/*.deb "$folder/var/lib/apt/lists"/*
    ln -sf python3 "$folder/usr/bin/python"
    b config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    b commit --quiet --rm "$container" "$BASE" > /dev/null
    rm -rf "$WORK/debian"
}

redis_image() { # Debian's redis-server under the name of the image that the compose file asks for
    have "$REDIS" && return
    say "redis: Debian's, as $REDIS"
    local container
    container=$(b from --pull-never "$BASE")
    b run --isolation chroot "$container" -- sh -c "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get \
        install -qq --no-install-recommends redis-server > /dev/null && install -d -o redis -g redis /data" >&2
    b config --user redis "$container"
    b commit --quiet --rm "$container" "$REDIS" > /dev/null
}

pip_settings() { # this machine's index and certificates, for the build only
    printf '[global]\n'
    python3 -m pip config list 2> /dev/null | grep -vE 'file://|find-links' \
        | sed -nE "s/^(global|:env:)\.([a-z-]+)='(.*)'$/\2 = \3/p" | awk -F ' = ' '!seen[$1]++' || true
}

image() { # image NAME DOCKERFILE [OPTIONS]
    local name=$1 file=$2 begin
    shift 2
    have "localhost/$name" && return
    say "$name: building"
    begin=$(now)
    b build --isolation chroot --pull-never --layers=false --format docker --file "$file" --tag "localhost/$name" \
        --volume "$WORK/pip.conf:/etc/pip.conf:ro" --volume /etc/ssl/certs:/etc/ssl/certs:ro \
        --build-arg "REVISION=$(git rev-parse HEAD 2> /dev/null || echo unknown)" "$@" . \
        > "$WORK/$name.log" 2>&1 || { tail -20 "$WORK/$name.log" >&2; die "building $name"; }
    note "${name}_build_s" "$(since "$begin")"
}

torch_kind() {
    python3 -c 'import urllib.request; urllib.request.urlopen("https://download.pytorch.org/whl/cpu/", timeout=10)' \
        > /dev/null 2>&1 && echo cpu || echo cuda
}

# --- running ---------------------------------------------------------------------------------------------------------

of() { b inspect --type image --format "$2" "$1"; }
words() { of "$1" "{{range $2}}{{println .}}{{end}}" | sed '/^$/d'; }

declare -A CONTAINER IMAGE OPTIONS PROCESS
create() { # create NAME IMAGE [OPTIONS OF buildah run]
    CONTAINER[$1]=$(b from --pull-never "$2")
    IMAGE[$1]=$2
    install -d -m 1777 "$WORK/tmp/$1"
    OPTIONS[$1]="--hostname $1 --volume $WORK/tmp/$1:/tmp ${*:3}"
}

confined() { # confined NAME COMMAND...: in the container, as its image's user
    local name=$1 user
    shift
    user=$(of "${IMAGE[$name]}" '{{.OCIv1.Config.User}}')
    # shellcheck disable=SC2086,SC2016
    b run --isolation chroot --user 0:0 --cap-add CAP_SYS_ADMIN ${OPTIONS[$name]} "${CONTAINER[$name]}" -- sh -c '
        mount -o remount,bind,ro / || exit 1
        user=$1 pid=$2
        shift 2
        [ -z "$pid" ] || echo $$ > "$pid"
        exec setpriv --reuid "${user%%:*}" --regid "${user##*:}" --clear-groups --no-new-privs \
            --bounding-set=-all --inh-caps=-all "$@"' - "$user" "${PID_FILE:-}" "$@"
}

start() { # start NAME [COMMAND...]: the image's, unless one is given
    local name=$1 command
    shift
    if [ $# -gt 0 ]; then command=("$@"); else mapfile -t command < <(words "${IMAGE[$name]}" .OCIv1.Config.Cmd); fi
    rm -f "$WORK/tmp/$name/pid"
    PID_FILE=/tmp/pid confined "$name" "${command[@]}" >> "$WORK/$name.out" 2>&1 &
    PROCESS[$name]=$!
}

healthy() { # healthy NAME SECONDS COMMAND...: from the start, by a health check
    local name=$1 limit=$((SECONDS + $2)) begin
    shift 2
    begin=$(now)
    until confined "$name" "$@" > "$WORK/$name.health" 2>&1; do
        kill -0 "${PROCESS[$name]}" 2> /dev/null || { tail -20 "$WORK/$name.out" >&2; die "$name ended"; }
        [ "$SECONDS" -lt "$limit" ] || { tail -20 "$WORK/$name.out" "$WORK/$name.health" >&2; die "$name: not healthy"; }
        sleep 0.5
    done
    say "$name: healthy after $(since "$begin") s"
    note "${AGAIN:-}${LABEL:-$name}_start_s" "$(since "$begin")"
}

stop() { # stop NAME SECONDS: by the image's signal, within the compose file's grace
    local name=$1 limit=$2 begin signal status=0
    signal=$(of "${IMAGE[$name]}" '{{.Docker.Config.StopSignal}}')
    begin=$(now)
    kill -s "${signal:-SIGTERM}" "$(cat "$WORK/tmp/$name/pid")"
    timeout "$limit" tail --pid="${PROCESS[$name]}" -f /dev/null || die "$name did not stop within $limit s"
    wait "${PROCESS[$name]}" || status=$?
    # uvicorn ends by the signal that it was sent, once everything is in order.
    [ "$status" = 0 ] || grep -q 'subprocess exited on terminated' "$WORK/$name.out" || { tail -20 "$WORK/$name.out" >&2; die "$name: exit status $status after SIGTERM"; }
    say "$name: stopped after $(since "$begin") s"
    note "${AGAIN:-}${name}_stop_s" "$(since "$begin")"
}

confinement() { # is it true? One condition a line: `sh -e` takes no notice of `!` and of what stands before `&&`
    confined "$1" sh -ec '
        test "$(id -u)" -ne 0
        grep -q "^CapEff:.0*$" /proc/self/status
        grep -q "^CapBnd:.0*$" /proc/self/status
        grep -q "^NoNewPrivs:.1$" /proc/self/status
        if touch /app/written 2> /dev/null || touch /written 2> /dev/null; then exit 1; fi
        touch /tmp/written' || die "$1 is not confined"
}

stack_up() {
    start redis sh -c "$REDIS_SCRIPT"
    healthy redis 30 sh -c 'redis-cli ping | grep -q PONG'
    start api
    start housekeeping python -m api.housekeeping
    healthy housekeeping 60 python -m shared.alive housekeeping 300
    mapfile -t check < <(words localhost/kernelscope-api .Docker.Config.Healthcheck.Test)
    healthy api 60 "${check[@]:1}"
}

inside() {
    ip link set lo up
    local volumes=$WORK/volumes url=http://127.0.0.1:8000 environment check
    rm -rf "$volumes" "$WORK/tmp" "$WORK"/*.out
    install -d "$volumes/redis" && chmod 777 "$volumes/redis"
    for folder in store weights torch; do install -d -o 10001 -g 10001 "$volumes/$folder"; done
    environment="--env KERNELSCOPE_REDIS_URL=redis://127.0.0.1:6379/0 --env KERNELSCOPE_REDIS_PASSWORD=$REDIS_PASSWORD --env KERNELSCOPE_STORE_URL=file:///data/store"
    environment+=" --env KERNELSCOPE_LOG_FORMAT=json --volume $volumes/store:/data/store"
    create redis "$REDIS" --env "REDISCLI_AUTH=$REDIS_PASSWORD" --volume "$volumes/redis:/data"
    create api localhost/kernelscope-api "$environment" --env KERNELSCOPE_ACCESS=open
    create housekeeping localhost/kernelscope-api "$environment"
    create worker localhost/kernelscope-worker "$environment" --env KERNELSCOPE_WEIGHTS_DIR=/data/weights \
        --env KERNELSCOPE_PRELOAD=vgg16 --volume "${WEIGHTS_DIR:-$volumes/weights}:/data/weights" \
        --volume "$volumes/torch:/data/torch"

    stack_up
    start worker
    mapfile -t check < <(words localhost/kernelscope-worker .Docker.Config.Healthcheck.Test)
    healthy worker 180 "${check[@]:1}"
    # Alive is not ready: it may still look for its weights.
    LABEL=worker_ready healthy api 180 python -c "import json, urllib.request as web
workers = json.load(web.urlopen('$url/readyz'))['workers']
raise SystemExit(not any(worker['ready'] for worker in workers))"
    for name in api housekeeping worker; do confinement "$name"; done
    say "api, housekeeping, worker: own user, read-only root, no capabilities, no new privileges"

    local begin
    begin=$(now)
    confined api python -m kernelscope demo --url "$url" --out /tmp/demo >&2 || die "the demonstration"
    note demo_s "$(since "$begin")"
    note demo_pictures "$(find "$WORK/tmp/api/demo" -name '*.png' | wc -l)"
    [ "$(find "$WORK/tmp/api/demo" -name '*-panel.png' | wc -l)" -ge 2 ] || die "the demonstration drew too few pictures"

    stop worker 20
    stop housekeeping 10
    stop api 15
    stop redis 30
    say "once more with the same volumes: is everything still there?"
    AGAIN=again_
    stack_up
    confined api python -m kernelscope jobs --url "$url" --json > "$WORK/jobs.json" || die "the second run"
    grep -q succeeded "$WORK/jobs.json" || die "the second run knows no job of the first"
    stop housekeeping 10
    stop api 15
    stop redis 30
}

if [ "${1:-}" = --inside ]; then
    inside
    exit
fi

[ "$(id -u)" = 0 ] || die "must be run as root (debootstrap and mounts need it)"
for program in buildah debootstrap unshare ip setpriv python3; do
    command -v "$program" > /dev/null || die "$program is missing: apt install buildah debootstrap iproute2 util-linux python3"
done
if [ -n "${WORK:-}" ]; then
    mkdir -p "$WORK"
    WORK=$(realpath "$WORK")
else
    WORK=$(mktemp -d /var/tmp/kernelscope-verify.XXXXXX)
    trap 'rm -rf "$WORK"' EXIT
fi
export WORK WEIGHTS_DIR TMPDIR="$WORK" BUILDAH_ISOLATION=chroot
[ -z "${WEIGHTS_DIR:=}" ] || WEIGHTS_DIR=$(realpath "$WEIGHTS_DIR")
: > "$WORK/figures"
b rm --all > /dev/null  # of a run before that was interrupted

base
redis_image
pip_settings > "$WORK/pip.conf"
image kernelscope-api Dockerfile.api
image kernelscope-worker Dockerfile.worker --build-arg "TORCH=${TORCH:=$(torch_kind)}"
base_size=$(megabytes "$BASE")
note base_mb "$base_size"
for name in kernelscope-api kernelscope-worker; do
    size=$(megabytes "localhost/$name")
    note "${name}_mb" "$size"
    note "${name}_mb_over_base" "$((size - base_size))"
    say "$name: $size MB, of which its base $base_size MB"
done

# A network and a process tree of their own: nothing outlives this script, nothing meets what runs on this machine.
unshare --net --mount --pid --fork --mount-proc --kill-child "$0" --inside
note torch "\"$TORCH\""
say "passed"
paste --serial --delimiters=, "$WORK/figures" | sed 's/^/{/; s/$/}/; s/,"/, "/g'
