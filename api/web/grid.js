// A grid of tiles. Of many tiles only those near the visible rows are in the document; a tile is made once and kept.

const AHEAD = 2; // rows above and below the visible ones
const FEW = 48; // tiles, up to which all of them are shown and nothing scrolls

export class Grid {
  // `tile(at)` makes the tile of an index; `width`: the least width of a tile, in rem.
  constructor(box, tile, width) {
    this.box = box;
    this.make = tile;
    this.width = width;
    this.clear();
    box.addEventListener("scroll", () => this.draw(), { passive: true });
    box.addEventListener("keydown", (event) => this.keyed(event));
    new ResizeObserver(() => this.draw()).observe(box);
  }

  clear() {
    this.made = new Map();
    this.order = [];
    this.box.replaceChildren();
    this.box.scrollTop = 0;
  }

  get(at) {
    return this.made.get(at);
  }

  tile(at) {
    if (!this.made.has(at)) {
      const tile = this.make(at);
      tile.dataset.at = at;
      this.made.set(at, tile);
    }
    return this.made.get(at);
  }

  // Shows the tiles of these indices.
  show(order) {
    this.order = order;
    this.many = order.length > FEW;
    this.box.classList.toggle("many", this.many);
    this.draw();
  }

  draw() {
    if (this.many && this.box.clientWidth) this.drawVisible();
    if (this.many) return;
    this.put(this.order);
    for (const at of this.order) this.tile(at).style.width = "";
  }

  drawVisible() {
    const first = this.tile(this.order[0]);
    if (!first.isConnected) this.box.append(first);
    this.measure(first);
    const rows = Math.ceil(this.order.length / this.columns);
    const top = Math.max(0, Math.floor(this.box.scrollTop / this.step) - AHEAD);
    const bottom = Math.min(rows, Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.step) + AHEAD);
    const focused = this.order.indexOf(this.indexOf(document.activeElement));
    const places = new Set(Array.from({ length: (bottom - top) * this.columns }, (_, each) => top * this.columns + each));
    if (focused >= 0) places.add(focused);
    const drawn = [...places].filter((place) => place < this.order.length).sort((one, other) => one - other);
    this.put(drawn.map((place) => this.order[place]));
    for (const place of drawn) this.place(this.tile(this.order[place]), place);
    this.fill(rows * this.step + this.edge);
  }

  // Columns by the width; the height of a row by a tile.
  measure(tile) {
    const style = getComputedStyle(this.box);
    const gap = parseFloat(style.rowGap) || 8;
    const edge = parseFloat(style.paddingLeft);
    const least = this.width * parseFloat(getComputedStyle(document.documentElement).fontSize);
    const room = this.box.clientWidth - 2 * edge;
    const columns = Math.max(1, Math.floor((room + gap) / (least + gap)));
    const width = (room - (columns - 1) * gap) / columns;
    if (width !== this.tileWidth || columns !== this.columns) {
      Object.assign(this, { columns, tileWidth: width, gap, edge });
      tile.style.width = `${width}px`;
      this.step = tile.getBoundingClientRect().height + gap;
    }
  }

  place(tile, place) {
    const { style } = tile;
    style.width = `${this.tileWidth}px`;
    style.left = `${this.edge + (place % this.columns) * (this.tileWidth + this.gap)}px`;
    style.top = `${this.edge + Math.floor(place / this.columns) * this.step}px`;
  }

  // What gives the box its height to scroll through.
  fill(height) {
    this.filler ??= Object.assign(document.createElement("div"), { className: "filler" });
    this.filler.style.height = `${height}px`;
    if (!this.filler.isConnected) this.box.prepend(this.filler);
  }

  // These tiles and no others, in this order; those that are there stay where they are, and keep the focus.
  put(order) {
    const tiles = order.map((at) => this.tile(at));
    const wanted = new Set(tiles);
    for (const child of [...this.box.children]) if (!wanted.has(child) && (child !== this.filler || !this.many)) child.remove();
    let next = this.box.firstElementChild;
    if (next && next === this.filler) next = next.nextElementSibling;
    for (const tile of tiles) {
      if (tile === next) next = next.nextElementSibling;
      else this.box.insertBefore(tile, next);
    }
  }

  indexOf(element) {
    const tile = this.box.contains(element) && element !== this.box ? element.closest("[data-at]") : null;
    return tile ? Number(tile.dataset.at) : null;
  }

  // Arrow keys from tile to tile, also to one that is not in the document yet.
  keyed(event) {
    const from = this.order.indexOf(this.indexOf(event.target));
    if (from < 0 || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const last = this.order.length - 1;
    const row = this.many ? this.columns : getComputedStyle(this.box).gridTemplateColumns.split(" ").length;
    const to = { ArrowRight: from + 1, ArrowLeft: from - 1, ArrowDown: from + row, ArrowUp: from - row, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to >= 0 && to <= last) this.focus(to);
  }

  focus(place) {
    if (this.many) {
      const top = Math.floor(place / this.columns) * this.step;
      const { scrollTop, clientHeight } = this.box;
      this.box.scrollTop = Math.min(Math.max(scrollTop, top + this.step - clientHeight), top);
      this.drawVisible();
    }
    const tile = this.tile(this.order[place]);
    (tile.matches("button, a") ? tile : tile.querySelector("input")).focus({ preventScroll: this.many });
  }
}
