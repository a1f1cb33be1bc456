# Sourced by tests of the command line. Needs $work, a folder, and counts in $failed; `match=-E` makes TEXT a pattern.
# What the command printed stays in $work/log.
failed=0
expect() { # CODE TEXT CMD...
    local code=$1 text=$2 got
    shift 2
    timeout -k 2 60 "$@" >"$work/log" 2>&1
    got=$?
    if [ $got -ne "$code" ] || ! grep -q "${match:--F}" -- "$text" "$work/log"; then
        echo "FAILED: exit code $got (expected $code), wanted \"$text\": $*"
        head -40 "$work/log"
        failed=$((failed + 1))
    fi
}
