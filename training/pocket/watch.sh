#!/bin/sh
# Run a training command and restart it when it has exited or has written nothing to its log for STALL
# seconds (on a busy machine OpenMP can miss a wake-up and hang).
# usage: watch.sh LOG UNTIL_EPOCH AUTOGROUP_NICE command...
log=$1; until=$2; nice=$3; shift 3
STALL=${STALL:-150}
pid=
while [ "$(date +%s)" -lt "$until" ]; do
    if [ -z "$pid" ] || ! kill -0 "$pid" 2>/dev/null; then
        [ -e "$log.stop" ] && exit 0
        setsid "$@" >> "$log" 2>&1 &
        pid=$!
        sleep 1
        echo "$nice" > "/proc/$pid/autogroup" 2>/dev/null
        touch "$log"
    elif [ $(( $(date +%s) - $(stat -c %Y "$log") )) -gt "$STALL" ]; then
        echo "watch: stalled, restarting" >> "$log"
        kill -9 "$pid"; sleep 1; pid=
        continue
    fi
    sleep 5
done
kill "$pid"
