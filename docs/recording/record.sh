#!/usr/bin/env bash
# Records docs/recording/node-loss.cast and renders docs/node-loss.svg: `make recording`.
# Three nodes on this machine; one is killed in the middle of a sentence. Needs tmux, asciinema 2 and termtosvg.
set -euo pipefail

cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1
NETWORK=src/settings_distr/configuration.json
CAST=docs/recording/node-loss.cast
# Greedy and in float32, so that every answer has this word and as many tokens up to the end of a sentence.
MIDDLE='rejuvenate' N_TOKENS=73

terminal() { tmux -L mdi-recording "$@"; }
show() { terminal capture-pane -p -J -t "$1"; }
wait_for() { for _ in $(seq 600); do show "$1" | grep -q -- "$2" && return; sleep 0.1; done; echo "no $2"; return 1; }
type_in() { terminal send-keys -t "$1" -l "$2"; sleep 0.6; terminal send-keys -t "$1" Enter; }

python src/secondary.py --nodes-config $NETWORK 0 2>/dev/null &
OTHER=$!
trap 'kill $OTHER 2>/dev/null || true; terminal kill-server 2>/dev/null || true' EXIT

terminal -f /dev/null new-session -d -x 100 -y 28 'PS1="$ " bash --norc'
terminal set-option -g status off
terminal set-option -g pane-border-status top
terminal set-option -g pane-border-format ' #{pane_title} '
terminal split-window -v -l 8 'PS1="$ " bash --norc'
terminal select-pane -t 0.0 -T 'the starter'
terminal select-pane -t 0.1 -T 'the machine of secondary 1'

drive() {
    type_in 0.1 "./src/secondary.py --nodes-config $NETWORK 1 &"
    wait_for 0.1 'waiting for a starter'
    type_in 0.0 "./src/starter.py --ckpt local/SmolLM2-135M-Instruct --nodes-config $NETWORK --dtype float32 --temperature 0 --n-samples 1 --n-tokens $N_TOKENS --node-timeout 3 --prompt 'Why do we need sleep?'"
    wait_for 0.0 "$MIDDLE"
    type_in 0.1 'kill -9 %1'
    type_in 0.1 ''  # bash tells what has ended before its next prompt
    wait_for 0.0 'tokens/s'
    sleep 4
}

(trap 'terminal kill-server' EXIT; drive) &
asciinema rec --quiet --overwrite --idle-time-limit 1.5 --cols 100 --rows 28 --command 'tmux -L mdi-recording attach' $CAST
wait $!
termtosvg render $CAST docs/node-loss.svg --template window_frame --min-frame-duration 80 --loop-delay 3000
