// Where things are in the drawing of the ring. Angles are shares of the way round, clockwise, from the top.

const MARGIN = 6;
const [SMALLEST, LARGEST] = [13, 50]; // radii of nodes
const [NARROWEST, WIDEST] = [96, 140]; // radii of the ring, as far as there is room

/** The size of the drawing for `n` nodes on a page that has room for `width`. */
export class Geometry {
  constructor(n, width) {
    this.n = n;
    const room = width / 2 - MARGIN; // for the ring's radius and a node's
    const half = n < 2 ? 1 : Math.sin(Math.PI / n); // of the distance between neighbours, at radius 1
    const gap = 16;
    this.node = clamp((room * half - gap) / (1 + half), SMALLEST, LARGEST);
    this.ring = Math.min(room - this.node, Math.max(WIDEST, n < 2 ? 0 : (this.node + gap) / half));
    this.ring = Math.max(this.ring, Math.min(NARROWEST, room - this.node));
    this.width = width;
    this.cx = width / 2;
    this.cy = this.ring + this.node + MARGIN;
    this.height = this.cy + MARGIN + this.node + this.#lowest();
  }

  /** How far below the centre the lowest node is; three nodes leave room below them. */
  #lowest() {
    const lowest = Math.max(...Array.from({ length: this.n }, (_, i) => -Math.cos((2 * Math.PI * i) / this.n)), 0);
    return Math.max(this.ring * lowest, this.ring - this.node); // the ring itself is below two neighbours
  }

  /** The point of the ring at a share of the way, `outward` from it. */
  at(share, outward = 0) {
    return around(this.cx, this.cy, this.ring + outward, share);
  }

  ofNode(rank) {
    return this.at(rank / this.n);
  }

  /** The share of the way where the arrow behind a node is. */
  ofArrow(rank) {
    return (rank + 0.5) / this.n;
  }

  arc(from, to) {
    return arc(this.cx, this.cy, this.ring, from, to);
  }
}

/** The path of a part of a circle. A whole circle would begin where it ends, which draws nothing. */
export function arc(cx, cy, radius, from, to) {
  const [x0, y0] = around(cx, cy, radius, from);
  const [x1, y1] = around(cx, cy, radius, Math.min(to, from + 0.9999));
  return `M ${round(x0)} ${round(y0)} A ${radius} ${radius} 0 ${to - from > 0.5 ? 1 : 0} 1 ${round(x1)} ${round(y1)}`;
}

function around(cx, cy, radius, share) {
  const angle = 2 * Math.PI * share - Math.PI / 2;
  return [cx + radius * Math.cos(angle), cy + radius * Math.sin(angle)];
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

function round(value) {
  return Math.round(value * 100) / 100;
}
