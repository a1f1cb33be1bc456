#!/usr/bin/env bash
# report_browser_test.sh FERRY SOURCE_DIR: what `ferry report` writes opens in Chromium without a console error, in light
# and dark, on a desk's and a phone's width, and every plot has a place of its own. Exit code 77 (skipped) without Chromium.
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

# Real results of this machine, small: they are looked at, not measured.
"$ferry" bench layer --shape "$source/tests/launch/tiny_model.yaml" --decode 1,2 --context 8 --prefill 16 \
    --warmup 1 --repetitions 2 --json layer.json >/dev/null || exit 1
"$ferry" bench exchange --tokens 1,8 --dim 64 --experts 8 --topk 2 --repetitions 3 --json exchange.json >/dev/null || exit 1
cp exchange.json baseline.json
"$ferry" generate --model "$source/configs/demo" --prompt "It is a truth" --set sampling.max_tokens=12 \
    --set log.trace=trace.json --set log.expert_load=load.json >/dev/null 2>log || { cat log; exit 1; }
"$ferry" report layer.json exchange.json load.json trace.json --baseline baseline.json -o report.html || exit 1

open() { # PAGE WIDTH COLOURS(0 dark, 1 light) -> dom; console messages in $work/console
    timeout 100 "$browser" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir="$work/profile" \
        --enable-logging=stderr --blink-settings=preferredColorScheme="$3" --window-size="$2",2000 --dump-dom \
        "file://$work/$1" 2>console
}

# The page as it is: no message at all on the console.
open report.html 1400 1 >dom || fail "Chromium ended with $?"
grep -q '</html>' dom || fail "the page did not open"
if grep CONSOLE console; then fail "the console has messages"; fi

# A copy with a script that measures: each plot that is shown has a box inside the window, and texts of a plot do not
# leave it. The policy that forbids scripts is taken out of the copy only.
sed -e 's/<meta http-equiv="Content-Security-Policy"[^>]*>//' -e 's#</body>#<script>\
const shown = [...document.querySelectorAll("svg.plot")].filter(p => p.getClientRects().length > 0);\
const bad = [];\
for (const plot of shown) {\
  const box = plot.getBoundingClientRect();\
  if (box.width < 100 || box.height < 40) bad.push(plot.id + " is " + box.width + " x " + box.height);\
  if (box.left < 0 || box.right > innerWidth + 1) bad.push(plot.id + " leaves the window");\
  for (const text of plot.querySelectorAll("text")) {\
    const inside = text.getBoundingClientRect();\
    if (inside.left < box.left - 2 || inside.right > box.right + 2) bad.push(plot.id + " cuts " + text.textContent);\
  }\
}\
if (document.documentElement.scrollWidth > innerWidth) bad.push("the page is wider than the window");\
document.title = "measured " + shown.length + " plots; bad: " + bad.join("; ");\
</script></body>#' report.html >measured.html
figures=$(grep -o '<figure ' report.html | wc -l)
[ "$figures" -ge 6 ] || fail "$figures figures"
for width in 1400 1000 500; do
    for colours in 0 1; do
        title=$(open measured.html "$width" "$colours" | grep -o '<title>measured[^<]*' | head -1)
        [ "$title" = "<title>measured $figures plots; bad: " ] || fail "$width px, colours $colours: $title"
        if grep CONSOLE console; then fail "the console has messages"; fi
    done
done
[ "$failed" -eq 0 ] && echo "$figures plots"
exit "$failed"
