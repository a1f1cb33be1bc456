# Sourced by tests that start a job in the background: $work, a folder, and $job, the process group that runs (empty:
# none), are gone when the test ends, however it ends. What the job printed is in $work/log.
work=$(mktemp -d)
job=
cleanup() {
    [ -n "$job" ] && kill -KILL -- "-$job" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
fail() {
    echo "FAILED: $*"
    tail -30 "$work/log"
    exit 1
}
now_ms() { echo $(($(date +%s%N) / 1000000)); }

# COUNT: that many requests of uneven length, to standard output.
requests() {
    local i
    for i in $(seq 1 "$1"); do
        echo "{\"id\":\"r$i\",\"prompt\":\"Emma was number $i, and\",\"max_tokens\":$((10 + i * 7 % 31)),\"temperature\":0.8,\"seed\":$i}"
    done
}

# RANK: its process, under its keeper, of the job that writes to a folder in $work.
rank_process() {
    local process command environ
    for process in /proc/[0-9]*; do
        { command=$(tr '\0' ' ' <"$process/cmdline") && environ=$(tr '\0' '\n' <"$process/environ"); } 2>/dev/null || continue
        [[ "$command" == *"ferry generate"*"$work/"* && $'\n'"$environ"$'\n' == *$'\n'"OMPI_COMM_WORLD_RANK=$1"$'\n'* ]] || continue
        [ -z "$(cat "$process"/task/*/children 2>/dev/null)" ] && basename "$process"
    done
}
