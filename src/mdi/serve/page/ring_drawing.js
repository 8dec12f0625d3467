// The drawn ring: nodes with the shares of their time, the links between them, and the messages under way.

import { KeyedChildren, setAttributes, setText, shape } from "./dom.js";
import { Messages } from "./ring_messages.js";
import { arc, Geometry } from "./ring_geometry.js";
import { describe, stateOf } from "./ring_state.js";
import { layers, rate } from "./units.js";

const SHARES = ["compute", "transfer", "idle"];

export class RingDrawing {
  #svg;
  #links;
  #nodes;
  #messages;
  #centre = new Centre();
  #snapshot = null;
  #geometry = null;

  constructor(svg) {
    this.#svg = svg;
    const [links, messages, nodes] = ["links", "messages", "nodes"].map((name) => shape("g", { class: name }));
    svg.append(links, messages, this.#centre.node, nodes);
    this.#links = new KeyedChildren(links, (link) => link.rank, () => new Link());
    this.#nodes = new KeyedChildren(nodes, (item) => item.node.name, () => new NodeShape());
    this.#messages = new Messages(messages);
    new ResizeObserver(() => this.#draw()).observe(svg);
  }

  update(snapshot) {
    this.#snapshot = snapshot;
    this.#draw();
  }

  #draw() {
    const width = Math.round(this.#svg.clientWidth);
    if (this.#snapshot === null || width === 0) return;
    const { nodes, messages } = this.#snapshot;
    const geometry = this.#geometryFor(nodes.length, width);
    this.#links.update(nodes.map((node, rank) => ({ rank, geometry, isBroken: isBroken(nodes, rank) })));
    this.#nodes.update(nodes.map((node, rank) => ({ node, rank, geometry })));
    this.#centre.update(this.#snapshot, geometry);
    this.#messages.update(this.#snapshot.state === "recovering" ? [] : messages, geometry);
    setAttributes(this.#svg, { "aria-label": describe(this.#snapshot) });
  }

  #geometryFor(n, width) {
    if (this.#geometry?.n !== n || this.#geometry.width !== width) {
      this.#geometry = new Geometry(n, width);
      const { height } = this.#geometry;
      setAttributes(this.#svg, { viewBox: `0 0 ${width} ${height}`, height });
    }
    return this.#geometry;
  }
}

function isBroken(nodes, rank) {
  return [nodes[rank], nodes[(rank + 1) % nodes.length]].some((node) => stateOf(node) === "lost");
}

/** The way from a node to the next one. */
class Link {
  #line = shape("path", { class: "track" });
  #arrow = shape("path", { class: "arrow", d: "M -4 -5 L 4 0 L -4 5" });
  node = shape("g", {}, this.#line, this.#arrow);

  update({ rank, geometry, isBroken: broken }) {
    const middle = geometry.ofArrow(rank);
    const [x, y] = geometry.at(middle);
    setAttributes(this.#line, { d: geometry.arc(rank / geometry.n, (rank + 1) / geometry.n) });
    setAttributes(this.#arrow, { transform: `translate(${x} ${y}) rotate(${360 * middle})` });
    this.node.classList.toggle("broken", broken);
  }
}

/** A node: its name and layers, and around them how it spent the last seconds. */
class NodeShape {
  #disc = shape("circle", { class: "disc" });
  #idleRing = shape("circle", { class: "share-ring" });
  #shares = SHARES.map((name) => shape("path", { class: `share ${name}` }));
  #name = shape("text", { class: "name" });
  #layers = shape("text", { class: "layers" });
  #note = shape("text", { class: "caption" });
  node = shape("g", {}, this.#disc, this.#idleRing, ...this.#shares, this.#name, this.#layers, this.#note);

  update({ node, rank, geometry }) {
    const [x, y] = geometry.ofNode(rank);
    const radius = geometry.node;
    setAttributes(this.node, { transform: `translate(${x} ${y})`, class: `node ${stateOf(node)}` });
    setAttributes(this.#disc, { r: radius });
    setAttributes(this.#idleRing, { r: radius - 4 });
    this.#showShares(node, radius - 4);
    this.#showTexts(node, rank, radius);
  }

  #showShares(node, radius) {
    let from = 0;
    SHARES.forEach((name, i) => {
      const share = stateOf(node) === "running" ? (node[name] ?? 0) : 0;
      const d = share > 0.002 ? arc(0, 0, radius, from, Math.min(1, from + share)) : "";
      setAttributes(this.#shares[i], { d });
      from += share;
    });
  }

  /** Small nodes have room for a number alone; the list beside the drawing has the rest. */
  #showTexts(node, rank, radius) {
    const isSmall = radius < 38;
    const lost = stateOf(node) === "lost";
    setText(this.#name, isSmall ? String(rank) : node.name);
    setText(this.#layers, isSmall ? "" : lost ? "lost" : layers(node.layers));
    setText(this.#note, isSmall ? "" : lost ? `${Math.floor(node.missing_s ?? 0)} s` : "layers");
    setAttributes(this.#name, { y: isSmall ? 4 : -12 });
    setAttributes(this.#layers, { y: 7 });
    setAttributes(this.#note, { y: 21 });
    fit(this.#name, 1.55 * (radius - 8), isSmall ? 0 : 11);
  }
}

/** Sets a text smaller where it is wider than it may be. */
function fit(text, width, size) {
  if (size === 0) return;
  const estimate = 0.6 * size * text.textContent.length;
  setAttributes(text, { "font-size": Math.min(size, (size * width) / estimate).toFixed(1) });
}

/** The middle of the ring: how fast all of it is. */
class Centre {
  #rate = shape("text", { class: "rate" });
  #unit = shape("text", { class: "unit", y: 18 });
  #slots = shape("text", { class: "slots", y: 38 });
  #queue = shape("text", { class: "slots", y: 54 });
  node = shape("g", { class: "centre" }, this.#rate, this.#unit, this.#slots, this.#queue);

  update(snapshot, geometry) {
    const { slots, queue } = snapshot;
    setAttributes(this.node, { transform: `translate(${geometry.cx} ${geometry.cy - 14})` });
    setText(this.#rate, rate(snapshot.tokens_per_s));
    setText(this.#unit, "tokens/s");
    setText(this.#slots, `${slots.used} of ${slots.total} slots`);
    setText(this.#queue, queue.waiting > 0 ? `${queue.waiting} waiting` : "");
  }
}
