// What a snapshot of the ring means, in words.

import { count, layers, rate, seconds } from "./units.js";

/** A node as people see it: running, lost, or on its way to either. */
export function stateOf(node) {
  if (node.missing_s !== null || node.state === "missing") return "lost";
  return node.state === "running" ? "running" : "waiting";
}

/** The state of a node in words. */
export function nodeState(node) {
  return stateOf(node) === "lost" ? `lost ${seconds(node.missing_s ?? 0)} ago` : node.state;
}

/** The state of the ring in words. */
export function ringState(snapshot) {
  return snapshot.state === "ready" ? "ready" : `${snapshot.state} for ${seconds(snapshot.state_s)}`;
}

/** The drawing in one sentence. */
export function describe(snapshot) {
  const nodes = snapshot.nodes.map((node) => `${node.name} is ${nodeState(node)}, layers ${layers(node.layers)}`);
  return `Ring of ${count(snapshot.nodes.length, "node")}, ${snapshot.state}, ${rate(snapshot.tokens_per_s)} tokens per second: ${nodes.join("; ")}.`;
}

/** Names of nodes that were lost, and that came back, from one snapshot to the next. */
export function changes(before, now) {
  const wasLost = new Map((before?.nodes ?? []).map((node) => [node.name, stateOf(node) === "lost"]));
  const known = now.nodes.filter((node) => wasLost.has(node.name));
  return {
    lost: known.filter((node) => !wasLost.get(node.name) && stateOf(node) === "lost").map((node) => node.name),
    back: known.filter((node) => wasLost.get(node.name) && stateOf(node) === "running").map((node) => node.name),
  };
}
