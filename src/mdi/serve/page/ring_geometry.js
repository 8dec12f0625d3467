// Where things are in the drawing of the ring. Angles are shares of the way round, clockwise, from the top.

const MARGIN = 6;
const GAP = 16; // between neighbours, at least
const [SMALLEST, LARGEST] = [13, 50]; // radii of nodes
const COMFORTABLE = 140; // radius of a ring that is not larger for its number of nodes

/** The size of the drawing for `n` nodes on a page that has room for `width`. */
export class Geometry {
    constructor(n, width) {
        const room = width / 2 - MARGIN; // for the radii of the ring and of a node
        const half = n === 1 ? 1 : Math.sin(Math.PI / n); // the way to a neighbour, of a ring of radius 1
        this.n = n;
        this.width = width;
        this.node = clamp((room * half - GAP) / (1 + half), SMALLEST, LARGEST);
        this.ring = Math.min(room - this.node, Math.max(COMFORTABLE, (this.node + GAP) / half));
        this.cx = width / 2;
        this.cy = MARGIN + this.node + this.ring;
        this.height = this.cy + this.#below() + MARGIN;
    }

    /** How far the drawing goes below the centre: three nodes leave room below them. */
    #below() {
        const [, y] = around(0, 0, this.ring, Math.floor(this.n / 2) / this.n); // of the lowest node
        return Math.max(this.ring, y + this.node);
    }

    /** The point of the ring at a share of the way. */
    at(share) {
        return around(this.cx, this.cy, this.ring, share);
    }

    ofNode(place) {
        return this.at(place / this.n);
    }

    /** The share of the way where the arrow behind a node is. */
    ofArrow(place) {
        return (place + 0.5) / this.n;
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

export function clamp(value, low, high) {
    return Math.min(high, Math.max(low, value));
}

function round(value) {
    return Math.round(value * 100) / 100;
}
