#!/usr/bin/env bash
# watchdog_job.sh PROGRAM: a rank is killed, frozen or asleep; the job must end within 10 s of it and every
# survivor must say which rank it was and where itself was.
set -u
program=$1
here=$(cd "$(dirname "$0")" && pwd)
fail=0
# Survivors end with exit code 5. mpirun itself passes on the first one that it hears of: of a rank killed by signal 9
# that is 137 as a rule, and 5 when its machine is busy and a survivor quicker.
for how in kill freeze sleep; do
    begin=$(date +%s%N)
    output=$(FERRY_TEST_TIMEOUT_S=40 "$here/../support/mpirun.sh" 3 "$program" $how 2>&1)
    code=$?
    took_ms=$((($(date +%s%N) - begin) / 1000000))
    named=$([ $how = sleep ] && echo "[0-2]" || echo 2) # in a stall whoever notices first speaks
    reports=$(grep -c "stopping: rank $named on .* is at step" <<<"$output")
    errors=$(grep -c "error: rank [01] on .* stops at step .*: rank $named on " <<<"$output")
    echo "$how: exit code $code after $took_ms ms, $reports reports, $errors errors"
    if [ "$took_ms" -gt 10000 ] || [ "$reports" -lt 2 ] || [ "$errors" -lt 1 ] || [ "$code" -eq 0 ]; then
        echo "$output" | head -40
        fail=1
    fi
    expected=$([ $how = kill ] && echo "137 or 5" || echo 5)
    if ! grep -qw "$code" <<<"$expected"; then
        echo "expected exit code $expected"
        fail=1
    fi
done
# Before there is a watchdog, ranks that wait for all call the roll: of one that is frozen when MPI has started, and of
# rank 0, which then cannot tell.
# And of one that is frozen when all that is left is to end.
for how in freeze_starting freeze_first_met freeze_ending; do
    begin=$(date +%s%N)
    output=$(FERRY_START_TIMEOUT_S=3 FERRY_TEST_TIMEOUT_S=40 "$here/../support/mpirun.sh" 3 "$program" $how 2>&1)
    code=$?
    took_ms=$((($(date +%s%N) - begin) / 1000000))
    case $how in
    freeze_starting) missing="rank 0 waited [34] s at start-up .*: no answer from rank 2:" ;;
    freeze_ending) missing="rank [02] on [^ ]* waited 3 s in MPI_Finalize for all ranks" ;;
    freeze_first_met) missing="rank [12] waited [34] s at start-up .*: no answer from rank 0 on " ;;
    esac
    echo "$how: exit code $code after $took_ms ms"
    if [ "$code" -ne 5 ] || [ "$took_ms" -gt 20000 ] || ! grep -qE "(error|communication): $missing" <<<"$output"; then
        echo "$output" | head -40
        fail=1
    fi
done
# Many ranks come to rank 0 at once, where the system lets one connection wait.
if unshare --net true 2>/dev/null; then
    output=$(unshare --net sh -c 'ip link set lo up; echo 1 >/proc/sys/net/core/somaxconn; exec "$@"' - \
        "$here/../support/mpirun.sh" 12 "$program" kill 2>&1)
    if grep -q "cannot reach rank 0" <<<"$output" || ! grep -q "rank 11 on .* is lost" <<<"$output"; then
        echo "many_at_once:"
        echo "$output" | head -40
        fail=1
    fi
fi
exit $fail
