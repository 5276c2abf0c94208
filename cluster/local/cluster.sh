#!/bin/bash
# A Ray cluster of several nodes on one machine, with token authentication.
#
#   cluster/local/cluster.sh up [NODES]     start; prints what to export
#   cluster/local/cluster.sh status         nodes, addresses, and whether they live
#   cluster/local/cluster.sh cut NODE       take a node's network away (root);  mend NODE  gives it back
#   cluster/local/cluster.sh kill NODE      let a node die at once
#   cluster/local/cluster.sh down           stop all of it
#
# As root each node is a host of its own: a network namespace with its own address on a bridge, so that nodes reach each
# other only through the network. Else all nodes share this machine's address.
# XMODAL_LOCAL_DIR (state and logs), XMODAL_LOCAL_SUBNET and XMODAL_CPUS_PER_NODE change the defaults.
set -euo pipefail

state=${XMODAL_LOCAL_DIR:-/tmp/xmodal-local}
subnet=${XMODAL_LOCAL_SUBNET:-10.77.0}
cpus=${XMODAL_CPUS_PER_NODE:-2}
bridge=xmodal0
host_environment=(GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0) # the hosts share this machine's name, which is no address
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/auth_token" RAY_USAGE_STATS_ENABLED=0

isolated() { [ "$(id -u)" -eq 0 ] && [ -z "${XMODAL_LOCAL_SHARED:-}" ]; }
address() { if isolated; then echo "$subnet.$((10 + $1))"; else echo 127.0.0.1; fi; }
inside() { # NODE COMMAND...
  local node=$1
  shift
  if isolated; then exec ip netns exec "xmodal-$node" env "${host_environment[@]}" "$@"; else exec "$@"; fi
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
}

start() { # NODE: Ray in the foreground of a process of its own, so that ending that ends the node
  local options=(--block --node-ip-address "$(address "$1")" --num-cpus "$cpus")
  options+=(--object-store-memory 268435456 --dashboard-agent-listen-port $((52400 + $1)))
  if [ "$1" -eq 0 ]; then
    options+=(--head --port 6379 --dashboard-host "$(address 0)" --dashboard-port 8265 --temp-dir "$state/ray")
  else
    options+=(--address "$(address 0):6379")
  fi
  (inside "$1" setsid ray start "${options[@]}" >"$state/$1.log" 2>&1) &
  echo $! >"$state/$1.pid"
}

alive() { grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$(cat "$state/$1.pid")/status" 2>/dev/null; } # no zombie
started() { grep -q 'Ray runtime started' "$state/$1.log"; }

join() { # NODE: wait until it runs; on a machine that is busy, Ray gives up after half a minute, and is started again
  for _ in 1 2 3; do
    while alive "$1"; do
      if started "$1"; then return; fi
      sleep 0.5
    done
    start "$1"
  done
  echo "xmodal: node $1 does not start; see $state/$1.log" >&2
  exit 1
}

up() {
  local count=${1:-3}
  [ -z "$(nodes)" ] || { echo "xmodal: a cluster is up already; first: $0 down" >&2; exit 2; }
  (umask 077 && mkdir -p "$state" && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
  if isolated; then
    ip link add "$bridge" type bridge
    ip addr add "$subnet.1/24" dev "$bridge"
    ip link set "$bridge" up
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
    if isolated; then
      ip netns pids "xmodal-$node" 2>/dev/null | xargs -r kill -KILL || true
      ip netns del "xmodal-$node" 2>/dev/null || true
    fi
  done
  if isolated; then ip link del "$bridge" 2>/dev/null || true; fi
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
  kill) if isolated; then ip netns pids "xmodal-$2" | xargs -r kill -KILL; else stop "$2" KILL; fi ;;
  cut) ip link set "xmodal-v$2" down ;;
  mend) ip link set "xmodal-v$2" up ;;
  *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
