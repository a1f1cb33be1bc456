#!/usr/bin/env bash
# report_browser_test.sh FERRY SOURCE_DIR: what `ferry report` writes of every kind of result opens in Chromium without a
# console error, in light and dark, on a desk's and a phone's width, with every plot there, and no text of a plot cut off
# or on another. Exit code 77 (skipped) without Chromium.
set -uo pipefail
ferry=$1
source=$2
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || exit 77
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0
fail() { # WHAT
    failed=1
    echo "FAILED: $1"
}

# Real results of four ranks of this machine, small: they are looked at, not measured.
demo=$source/configs/demo
small=(--set engine.threads=1 --set engine.cache_gib=0.05 --set log.level=warn)
measure() { # RANKS COMMAND...
    FERRY_TEST_TIMEOUT_S=60 "$source/tests/support/mpirun.sh" "$1" "$ferry" bench "${@:2}" >log 2>&1 ||
        { echo "ferry bench ${*:2}: exit code $?"; cat log; exit 1; }
}
workload=(--requests 8 --input uniform:8:40 --output uniform:3:8)
measure 4 throughput --model "$demo" "${workload[@]}" "${small[@]}" --layout 2:2,1:3,colocated:2 --batch 1,4 \
    --repetitions 2 --slo-ttft-ms 500 --set log.trace=trace.json --json throughput.json
measure 4 throughput --model "$demo" "${workload[@]}" "${small[@]}" --layout 2:2,colocated:2 --batch 1,4 \
    --repetitions 2 --json before.json
measure 4 scaling --model "$demo" "${workload[@]}" "${small[@]}" --layout colocated:1,colocated:2,colocated:4 \
    --repetitions 1 --json scaling.json
measure 4 exchange --layout 2:2,colocated --tokens 1,8 --dim 64 --experts 8 --topk 2 --repetitions 3 --json exchange.json
measure 2 load --model "$demo" --layout colocated:1,1:1 --repetitions 1 "${small[@]}" --json load.json
measure 1 layer --shape "$source/tests/launch/tiny_model.yaml" --decode 1,2 --context 8 --prefill 16 --warmup 1 \
    --repetitions 2 --json layer.json
"$ferry" report throughput.json scaling.json exchange.json load.json layer.json trace-2-2-batch-4.json \
    --baseline before.json -o report.html || exit 1

for plot in throughput-output throughput-by-max-batch first-token-by-max-batch scaling-speedup scaling-measured-efficiency \
    scaling-output frontier-plot phases-plot expert-load- waits- exchange-time exchange-bandwidth layer- loading-speed \
    timeline- difference-; do
    grep -q "<figure id=\"$plot" report.html || fail "no plot $plot"
done

# A copy with a script that measures and tells the page around it. The policy that forbids scripts is taken out of the
# copy only.
sed -e 's/<meta http-equiv="Content-Security-Policy"[^>]*>//' -e 's#</body>#<script>\
const shown = [...document.querySelectorAll("svg.plot")].filter(p => p.getClientRects().length > 0);\
const bad = [];\
for (const plot of shown) {\
  const box = plot.getBoundingClientRect();\
  if (box.width < 100 || box.height < 40) bad.push(plot.id + " is " + box.width + " x " + box.height);\
  if (box.left < 0 || box.right > innerWidth + 1) bad.push(plot.id + " leaves the window");\
  const texts = [...plot.querySelectorAll("text")].filter(t => t.textContent).map(t => [t, t.getBoundingClientRect()]);\
  for (const [text, inside] of texts) {\
    if (inside.left < box.left - 2 || inside.right > box.right + 2) bad.push(plot.id + " cuts " + text.textContent);\
    for (const [other, b] of texts)\
      if (other !== text \&\& inside.left < b.right - 2 \&\& b.left < inside.right - 2 \&\&\
          inside.top < b.bottom - 4 \&\& b.top < inside.bottom - 4)\
        bad.push(plot.id + ": " + text.textContent + " lies on " + other.textContent);\
  }\
}\
if (document.documentElement.scrollWidth > innerWidth) bad.push("the page is wider than the window");\
parent.postMessage(innerWidth + " px: " + shown.length + " plots; bad: " + bad.join("; "), "*");\
</script></body>#' report.html >measured.html
widths=(1400 1000 500 360)
{
    echo '<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
    echo '<script>onmessage = e => { document.body.append(Object.assign(document.createElement("p"), {textContent: e.data})); };</script><body>'
    for width in "${widths[@]}"; do
        echo "<iframe src=\"measured.html\" width=\"$width\" height=\"900\" style=\"border:0\"></iframe>"
    done
    echo '<iframe src="report.html" width="1200" height="900"></iframe></body>'
} >frames.html

# Each start of a browser takes seconds: all widths, and the page as it is, in one for each colour scheme.
figures=$(grep -o '<figure ' report.html | wc -l)
for colours in 0 1; do # dark, light
    timeout 100 "$browser" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir="$work/profile" \
        --enable-logging=stderr --blink-settings=preferredColorScheme="$colours" --window-size=1500,2000 \
        --virtual-time-budget=20000 --dump-dom "file://$work/frames.html" >dom 2>console || fail "Chromium ended with $?"
    if grep CONSOLE console; then fail "the console has messages"; fi
    for width in "${widths[@]}"; do
        grep -qF "<p>$width px: $figures plots; bad: </p>" dom || fail "colours $colours, $(grep "<p>$width px" dom)"
    done
done
[ "$failed" -eq 0 ] && echo "$figures plots"
exit "$failed"
