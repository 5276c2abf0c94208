#!/bin/bash
# A Ray cluster of several nodes on one machine, with token authentication.
#
#   cluster/local/cluster.sh up [NODES]     start; prints what to export
#   cluster/local/cluster.sh status         nodes, addresses, and whether they live
#   cluster/local/cluster.sh cut NODE       take a node's network away (root);  mend NODE  gives it back
#   cluster/local/cluster.sh kill NODE      let a node die at once;        start NODE  gives a new one in its place
#   cluster/local/cluster.sh run NODE COMMAND...    run a command on a node
#   cluster/local/cluster.sh down           stop all of it
#
# As root each node is a host of its own: a network namespace with its own address on a bridge, so that nodes reach each
# other only through the network, with its own name and its own directory of Ray's (nodes that share one unpack a job's
# working directory over each other). Else all nodes share this machine's address, name and files.
# XMODAL_LOCAL_DIR (state and logs), XMODAL_LOCAL_SUBNET and XMODAL_CPUS_PER_NODE change the defaults.
set -euo pipefail

state=${XMODAL_LOCAL_DIR:-/tmp/xmodal-local}
subnet=${XMODAL_LOCAL_SUBNET:-10.77.0}
cpus=${XMODAL_CPUS_PER_NODE:-2}
bridge=xmodal0
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/auth_token" RAY_USAGE_STATS_ENABLED=0
export RAY_DASHBOARD_STARTUP_TIMEOUT_S=180 # on a machine that is busy Ray's 60 do not do

isolated() { [ "$(id -u)" -eq 0 ] && [ -z "${XMODAL_LOCAL_SHARED:-}" ]; }
address() { if isolated; then echo "$subnet.$((10 + $1))"; else echo 127.0.0.1; fi; }
inside() { # NODE COMMAND...
  local node=$1
  shift
  isolated || exec "$@"
  # What is mounted is seen by this process and its children alone.
  exec ip netns exec "xmodal-$node" unshare --uts sh -ec '
    hostname "$1"
    mount --bind "$2/hosts" /etc/hosts
    mount --bind "$2/disk-$1" "$2/ray"
    shift 2
    exec "$@"' sh "xmodal-$node" "$state" "$@"
}
nodes() { find "$state" -maxdepth 1 -name '*.pid' -printf '%f\n' 2>/dev/null | sed 's/\.pid$//' | sort -n; }

add_host() { # NODE: a namespace, and a cable from it to the bridge
  ip netns add "xmodal-$1"
  ip link add "xmodal-v$1" type veth peer name eth0 netns "xmodal-$1"
  ip link set "xmodal-v$1" master "$bridge" up
  ip -n "xmodal-$1" link set lo up
  ip -n "xmodal-$1" addr add "$(address "$1")/24" dev eth0
  ip -n "xmodal-$1" link set eth0 up
  ip -n "xmodal-$1" route add default via "$subnet.1"
  echo "$(address "$1") xmodal-$1" >>"$state/hosts"
  mkdir -p "$state/ray" "$state/disk-xmodal-$1"
}

start() { # NODE: Ray in the foreground of a process of its own, so that ending that ends the node
  local options=(--block --node-ip-address "$(address "$1")" --num-cpus "$(cat "$state/cpus")")
  options+=(--object-store-memory 268435456 --dashboard-agent-listen-port $((52400 + $1)))
  if [ "$1" -eq 0 ]; then
    options+=(--head --port 6379 --dashboard-host "$(address 0)" --dashboard-port 8265 --temp-dir "$state/ray")
  else
    options+=(--address "$(address 0):6379")
  fi
  : >"$state/$1.log"
  (inside "$1" setsid ray start "${options[@]}" >>"$state/$1.log" 2>&1) &
  echo $! >"$state/$1.pid"
}

alive() { grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$(cat "$state/$1.pid")/status" 2>/dev/null; } # no zombie
started() { grep -q 'Ray runtime started' "$state/$1.log"; }

join() { # NODE: wait until it runs; on a machine that is busy, Ray gives up after half a minute, and is started again
  for _ in 1 2 3; do
    while alive "$1" && alive 0; do
      if started "$1"; then return; fi
      sleep 0.5
    done
    alive 0 || [ "$1" -eq 0 ] || break
    start "$1"
  done
  echo "xmodal: node $1 does not start; see $state/$1.log" >&2
  exit 1
}

up() {
  local count=${1:-3}
  [ -z "$(nodes)" ] || { echo "xmodal: a cluster is up already; first: $0 down" >&2; exit 2; }
  (umask 077 && mkdir -p "$state" && echo "$cpus" >"$state/cpus" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
  if isolated; then
    ip link add "$bridge" type bridge
    ip addr add "$subnet.1/24" dev "$bridge"
    ip link set "$bridge" up
    echo 127.0.0.1 localhost >"$state/hosts"
    for node in $(seq 0 $((count - 1))); do add_host "$node"; done
  fi
  start 0
  join 0
  for node in $(seq 1 $((count - 1))); do start "$node"; done
  for node in $(seq 1 $((count - 1))); do join "$node"; done
  echo "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH"
  echo "xmodal submit --address http://$(address 0):8265"
}

stop() { # NODE SIGNAL
  local pid
  pid=$(cat "$state/$1.pid")
  kill "-$2" -- "-$pid" 2>/dev/null || kill "-$2" "$pid" 2>/dev/null || true
}

down() {
  for node in $(nodes | tac); do stop "$node" TERM; done
  for node in $(nodes); do
    for _ in $(seq 50); do alive "$node" || break; sleep 0.2; done
    stop "$node" KILL
    rm -f "$state/$node.pid"
  done
  isolated || return 0
  for host in $(ip netns list | grep -o '^xmodal-[0-9]*'); do # also of nodes that were never started
    ip netns pids "$host" | xargs -r kill -KILL || true
    ip netns del "$host"
  done
  ip link del "$bridge" 2>/dev/null || true
}

status() {
  for node in $(nodes); do
    if alive "$node"; then echo "$node $(address "$node") running"; else echo "$node $(address "$node") ended"; fi
  done
}

case ${1:-} in
  up) up "${2:-3}" ;;
  down) down ;;
  status) status ;;
  start)
    if alive "$2"; then echo "xmodal: node $2 runs" >&2; exit 2; fi
    start "$2"
    join "$2"
    ;;
  run) shift; inside "$@" ;;
  kill) if isolated; then ip netns pids "xmodal-$2" | xargs -r kill -KILL; else stop "$2" KILL; fi ;;
  cut) ip link set "xmodal-v$2" down ;;
  mend) ip link set "xmodal-v$2" up ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
