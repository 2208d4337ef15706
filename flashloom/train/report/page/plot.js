// Plots of curves by step: SVG, drawn anew for what is visible. Text only ever enters the page as
// text nodes, so nothing that a run holds can become markup.
'use strict';

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'class') node.className = value;
    else if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function shape(tag, attributes = {}, text = null) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  return node;
}

// Numbers with their units. 1,000 steps of a unit, as the program prints them.
const grouped = (value, digits = 0) =>
    value.toLocaleString('en-US', {minimumFractionDigits: digits, maximumFractionDigits: digits});
const significant = (value, digits) => {
  const size = value === 0 ? 0 : Math.floor(Math.log10(Math.abs(value)));
  return grouped(value, Math.min(12, Math.max(0, digits - 1 - size)));
};
const scaled = (value, digits, units) => {
  let unit = 0;
  while (Math.abs(value) >= 1000 && unit + 1 < units.length) {
    value /= 1000;
    ++unit;
  }
  return `${Number.isInteger(value) && unit === 0 ? grouped(value) : significant(value, digits)}${units[unit]}`;
};
const finite = (format) => (value) =>
    value === undefined || value === null ? '–' : Number.isFinite(value) ? format(value) : 'not finite';
const formats = {
  loss: finite((value) => value.toFixed(4)),
  rate: finite((value) => value === 0 ? '0' : value.toExponential(2).replace('e-', 'e−').replace('e+', 'e')),
  norm: finite((value) => Math.abs(value) >= 0.001 || value === 0 ? significant(value, 4) : formats.rate(value)),
  speed: finite((value) => `${value < 1000 ? grouped(value, value < 10 ? 1 : 0) : scaled(value, 4, ['', 'k', 'M', 'G'])}`),
  share: finite((value) => `${(100 * value).toFixed(Math.abs(value) >= 0.1 ? 1 : 2)} %`),
  bytes: finite((value) => scaled(value, 3, [' B', ' kB', ' MB', ' GB', ' TB'])),
  count: finite((value) => grouped(value)),
};
const duration = finite((seconds) => {
  const s = Math.round(seconds), pad = (n) => String(n).padStart(2, '0');
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  return s < 3600 ? `${Math.floor(s / 60)}:${pad(s % 60)} min`
                  : `${Math.floor(s / 3600)}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)} h`;
});

// The first index whose x is at or beyond `value`.
function lower(x, value) {
  let low = 0, high = x.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Which points to draw of [begin, end): all if few, else of each pixel's points the first, the
// lowest, the highest and the last (M4: Jugel et al. 2014), so that no extreme is ever lost.
function visiblePoints(x, y, begin, end, low, high, pixels) {
  if (end - begin <= 4 * pixels) return Array.from({length: end - begin}, (_, i) => begin + i);
  const kept = [];
  const scale = pixels / (high - low);
  let i = begin;
  while (i < end) {
    const bucket = Math.floor((x[i] - low) * scale);
    let first = i, last = i, least = -1, most = -1;
    for (; i < end && Math.floor((x[i] - low) * scale) === bucket; ++i) {
      last = i;
      if (least < 0 || y[i] < y[least]) if (y[i] === y[i]) least = i;
      if (most < 0 || y[i] > y[most]) if (y[i] === y[i]) most = i;
    }
    const four = [...new Set([first, Math.min(least, most), Math.max(least, most), last])];
    for (const index of four) if (index >= 0) kept.push(index);
  }
  return kept;
}

// Exponential mean, without the bias of its start; what is not finite is passed over.
function smoothed(y, weight) {
  const out = new Float32Array(y.length);
  let mean = 0, mass = 0;
  for (let i = 0; i < y.length; ++i) {
    if (Number.isFinite(y[i])) {
      mean = weight * mean + (1 - weight) * y[i];
      mass = weight * mass + (1 - weight);
    }
    out[i] = mass > 0 ? mean / mass : NaN;
  }
  return out;
}

function ticks(low, high, most) {
  const raw = (high - low) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw * 0.999) || raw;
  const list = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; ++n) list.push(n * step);
  return {list, step};
}

function logTicks(low, high) {
  const list = [];
  const decades = Math.log10(high / low);
  const parts = decades > 4 ? [1] : decades > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); ++e) {
    for (const part of parts) {
      const value = part * 10 ** e;
      if (value >= low * 0.999 && value <= high * 1.001) list.push(value);
    }
  }
  return list;
}

// A tick's text says as many digits as its neighbours need to differ.
function tickText(value, step, kind) {
  if (kind === 'loss') return value.toFixed(Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9))));
  if (kind === 'share') {
    return `${(100 * value).toFixed(Math.max(0, Math.min(6, -Math.floor(Math.log10(100 * step) + 1e-9))))} %`;
  }
  if (kind === 'bytes' || kind === 'speed' || kind === 'count') {
    return scaled(Number(value.toPrecision(6)), 4, kind === 'bytes' ? [' B', ' kB', ' MB', ' GB', ' TB'] : ['', 'k', 'M', 'G'])
        .replace(/(\.\d*?)0+(?=\D|$)/, '$1').replace(/\.(?=\D|$)/, '');
  }
  if (value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e5)) {
    return value.toExponential(1).replace('.0e', 'e').replace('e-', 'e−').replace('e+', 'e');
  }
  return String(Number(value.toPrecision(4)));
}

// What all plots by step share: the visible range, the step under the pointer, the smoothing.
class View {
  constructor(first, last) {
    this.first = first;
    this.last = Math.max(last, first + 1);
    this.low = this.first;
    this.high = this.last;
    this.cursor = null;
    this.smoothing = 0;
    this.listeners = [];
  }
  get zoomed() { return this.low > this.first || this.high < this.last; }
  show(low, high) {
    const width = Math.min(Math.max(high - low, Math.min(4, this.last - this.first)), this.last - this.first);
    low = Math.min(Math.max(low, this.first), this.last - width);
    this.low = low;
    this.high = low + width;
    this.changed('range');
  }
  zoom(factor, around = (this.low + this.high) / 2) {
    this.show(around - (around - this.low) * factor, around + (this.high - around) * factor);
  }
  pan(steps) { this.show(this.low + steps, this.high + steps); }
  all() { this.show(this.first, this.last); }
  point(step) {
    if (step !== this.cursor) {
      this.cursor = step;
      this.changed('cursor');
    }
  }
  smooth(weight) {
    this.smoothing = weight;
    this.changed('smoothing');
  }
  changed(what) { for (const listener of this.listeners) listener(what); }
}

// A figure with curves. options: title, kind (a key of formats), unit, note, series: [{name, x, y,
// color, dots, faint, smooth, hidden}], log, zero (the axis begins at 0), lines: [{value, name}],
// tall.
class Plot {
  constructor(view, options) {
    this.view = view;
    this.options = options;
    this.format = formats[options.kind];
    this.log = false;
    this.id = `clip-${View.plots = (View.plots || 0) + 1}`;
    this.series = options.series.filter((one) => one.y.length > 0);
    this.legend = element('ul', {class: 'legend'});
    this.svg = shape('svg', {class: 'plot', tabindex: 0, role: 'img'});
    const tools = element('div', {class: 'tools'});
    if (options.log) {
      this.logButton = element('button', {type: 'button', 'aria-pressed': 'false', title: 'logarithmic scale',
        onclick: () => {
          this.log = !this.log;
          this.logButton.setAttribute('aria-pressed', String(this.log));
          this.draw();
        }}, 'log');
      tools.append(this.logButton);
    }
    this.node = element('figure', {class: `card plot-card${options.tall ? ' tall' : ''}`},
        element('figcaption', {}, element('h3', {}, options.title,
            options.unit ? element('span', {class: 'unit'}, options.unit) : null), tools),
        this.legend, this.svg,
        options.note ? element('p', {class: 'note'}, options.note) : null);
    this.makeLegend();
    this.listen();
    view.listeners.push((what) => what === 'cursor' ? this.point() : this.draw());
    new ResizeObserver(() => {
      if (this.svg.clientWidth !== this.width) this.draw();
    }).observe(this.svg);
  }

  makeLegend() {
    for (const one of this.series) {
      one.readout = element('span', {class: 'value'});
      one.mark = shape('circle', {r: 4, class: 'mark', fill: one.color});
      const button = element('button', {type: 'button', class: 'key', 'aria-pressed': String(!one.hidden),
        title: 'show or hide', onclick: () => {
          one.hidden = !one.hidden;
          button.setAttribute('aria-pressed', String(!one.hidden));
          this.draw();
        }}, element('i', {style: `background:${one.color}`}), element('span', {}, one.name), one.readout);
      this.legend.append(element('li', {}, button));
    }
  }

  listen() {
    const stepAt = (event) => {
      const box = this.svg.getBoundingClientRect();
      return this.toStep(event.clientX - box.left);
    };
    let from = null;
    this.svg.addEventListener('pointermove', (event) => {
      const step = stepAt(event);
      if (from === null) {
        this.view.point(Math.min(Math.max(step, this.view.low), this.view.high));
      } else if (from.pan) {
        this.view.pan(from.step - step);
      } else {
        this.select(from.step, step);
      }
    });
    this.svg.addEventListener('pointerdown', (event) => {
      if (event.pointerType === 'mouse' && event.button === 0) {
        from = {step: stepAt(event), pan: event.shiftKey};
        this.svg.setPointerCapture(event.pointerId);
      }
    });
    this.svg.addEventListener('pointerup', (event) => {
      if (from !== null && !from.pan) {
        const to = stepAt(event);
        const pixels = Math.abs(this.toPixel(to) - this.toPixel(from.step));
        this.select(null);
        if (pixels > 6) this.view.show(Math.min(from.step, to), Math.max(from.step, to));
      }
      from = null;
    });
    this.svg.addEventListener('pointerleave', () => this.view.point(null));
    this.svg.addEventListener('dblclick', () => this.view.all());
    // A plain wheel scrolls the page; with Ctrl (or a pinch) it zooms, sideways it pans.
    this.svg.addEventListener('wheel', (event) => {
      const width = this.view.high - this.view.low;
      if (event.ctrlKey || event.metaKey) {
        this.view.zoom(2 ** (event.deltaY / 200), stepAt(event));
      } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        this.view.pan((event.shiftKey ? event.deltaY : event.deltaX) / 600 * width);
      } else {
        return;
      }
      event.preventDefault();
    }, {passive: false});
    this.svg.addEventListener('keydown', (event) => {
      if (moveByKey(this.view, event)) event.preventDefault();
    });
    this.svg.addEventListener('blur', () => this.view.point(null));
  }

  toPixel(step) {
    return this.left + (step - this.view.low) / (this.view.high - this.view.low) * this.inner;
  }
  toStep(pixel) {
    return this.view.low + (pixel - this.left) / this.inner * (this.view.high - this.view.low);
  }

  // Lowest and highest of what is visible; positive values alone on a logarithmic scale.
  extent() {
    let low = Infinity, high = -Infinity;
    for (const one of this.series) {
      if (one.hidden) continue;
      const begin = Math.max(0, lower(one.x, this.view.low) - 1);
      const end = Math.min(one.x.length, lower(one.x, this.view.high) + 2);
      for (let i = begin; i < end; ++i) {
        const value = one.y[i];
        if (Number.isFinite(value) && (!this.log || value > 0)) {
          if (value < low) low = value;
          if (value > high) high = value;
        }
      }
    }
    if (low > high) return [0, 1];
    if (this.options.zero && !this.log) low = Math.min(0, low);
    for (const line of this.options.lines || []) {
      if (this.options.zero && line.value < 2 * high) high = Math.max(high, line.value);
    }
    if (this.log) return [low / 1.05, high * 1.05];
    const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [this.options.zero && low === 0 ? 0 : low - margin, high + margin];
  }

  draw() {
    this.width = this.svg.clientWidth || 600;
    this.height = this.svg.clientHeight || 220;
    this.svg.replaceChildren();
    this.svg.setAttribute('viewBox', `0 0 ${this.width} ${this.height}`);
    const [low, high] = this.extent();
    const top = 8, bottom = this.height - 22;
    const place = this.log ? (value) => (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low))
                           : (value) => (value - low) / (high - low);
    this.toY = (value) => bottom - place(value) * (bottom - top);
    const grid = this.log ? {list: logTicks(low, high), step: null}
                          : ticks(low, high, Math.max(2, Math.floor((bottom - top) / 36)));
    const texts = grid.list.map((value) => tickText(value, grid.step || value / 2, this.options.kind));
    this.left = 12 + 6.6 * Math.max(2, ...texts.map((text) => text.length));
    this.inner = Math.max(20, this.width - this.left - 12);
    grid.list.forEach((value, i) => {
      const y = this.toY(value);
      this.svg.append(shape('line', {class: 'grid', x1: this.left, x2: this.left + this.inner, y1: y, y2: y}),
          shape('text', {class: 'tick', x: this.left - 6, y: y + 4, 'text-anchor': 'end'}, texts[i]));
    });
    const steps = ticks(this.view.low, this.view.high, Math.max(2, Math.floor(this.inner / 72)));
    for (const step of steps.list) {
      if (!Number.isInteger(step)) continue;
      this.svg.append(shape('text', {class: 'tick', x: this.toPixel(step), y: this.height - 5, 'text-anchor': 'middle'},
          tickText(step, steps.step, 'count')));
    }
    const clip = shape('clipPath', {id: this.id});
    clip.append(shape('rect', {x: this.left - 2, y: 0, width: this.inner + 4, height: bottom + 2}));
    this.svg.append(clip);
    for (const one of this.series) {
      if (one.hidden) continue;
      const smooth = one.smooth && this.view.smoothing > 0;
      this.path(one, one.y, smooth ? 'curve raw' : 'curve');
      if (smooth) {
        if (one.smoothing !== this.view.smoothing) {
          one.mean = smoothed(one.y, this.view.smoothing);
          one.smoothing = this.view.smoothing;
        }
        this.path(one, one.mean, 'curve');
      }
    }
    for (const line of this.options.lines || []) {
      if (line.value < low || line.value > high) continue;
      const y = this.toY(line.value);
      this.svg.append(shape('line', {class: 'limit', x1: this.left, x2: this.left + this.inner, y1: y, y2: y}),
          shape('text', {class: 'limit-text', x: this.left + 6, y: y - 5}, line.name));
    }
    this.band = shape('rect', {class: 'band', y: top, height: bottom - top, width: 0});
    this.cross = shape('line', {class: 'cross', y1: top, y2: bottom, visibility: 'hidden'});
    this.cursorText = shape('text', {class: 'cursor-text', y: this.height - 5, 'text-anchor': 'middle'});
    this.svg.append(this.band, this.cross, this.cursorText);
    for (const one of this.series) this.svg.append(one.mark);
    this.svg.setAttribute('aria-label', this.describe());
    this.point();
  }

  path(one, values, style) {
    const begin = Math.max(0, lower(one.x, this.view.low) - 1);
    const end = Math.min(one.x.length, lower(one.x, this.view.high) + 2);
    const points = visiblePoints(one.x, values, begin, end, this.view.low, this.view.high, this.inner);
    let text = '', pen = 'M', drawn = 0;
    for (const i of points) {
      const value = values[i];
      if (!Number.isFinite(value) || (this.log && value <= 0)) {
        pen = 'M';
        continue;
      }
      text += `${pen}${this.toPixel(one.x[i]).toFixed(1)} ${this.toY(value).toFixed(1)}`;
      pen = 'L';
      ++drawn;
    }
    this.svg.append(shape('path', {class: style, d: text, stroke: one.color, 'data-points': drawn, 'clip-path': `url(#${this.id})`}));
    if (one.dots || drawn === 1) {
      for (const i of points.length <= 60 ? points : []) {
        const x = this.toPixel(one.x[i]);
        if (Number.isFinite(values[i]) && x >= this.left - 1 && x <= this.left + this.inner + 1) {
          this.svg.append(shape('circle', {class: 'dot', r: 3.5, fill: one.color, cx: x, cy: this.toY(values[i])}));
        }
      }
    }
  }

  // The values at the cursor, or the last ones, in the legend.
  point() {
    const cursor = this.view.cursor;
    for (const one of this.series) {
      const last = one.x.length - 1;
      let i = cursor === null ? last : Math.min(lower(one.x, cursor), last);
      if (cursor !== null && i > 0 && cursor - one.x[i - 1] < one.x[i] - cursor) --i;
      const smooth = one.smooth && this.view.smoothing > 0 && one.mean;
      one.readout.textContent = this.format((smooth ? one.mean : one.y)[i]);
      const shown = cursor !== null && !one.hidden && Number.isFinite(one.y[i]) && this.toY &&
          one.x[i] >= this.view.low && one.x[i] <= this.view.high && !(this.log && one.y[i] <= 0);
      one.mark.setAttribute('visibility', shown ? 'visible' : 'hidden');
      if (shown) {
        one.mark.setAttribute('cx', this.toPixel(one.x[i]));
        one.mark.setAttribute('cy', this.toY((smooth ? one.mean : one.y)[i]));
      }
    }
    if (!this.cross) return;
    this.cross.setAttribute('visibility', cursor === null ? 'hidden' : 'visible');
    this.cursorText.textContent = cursor === null ? '' : `step ${grouped(Math.round(cursor))}`;
    if (cursor !== null) {
      const x = this.toPixel(cursor);
      this.cross.setAttribute('x1', x);
      this.cross.setAttribute('x2', x);
      this.cursorText.setAttribute('x', Math.min(Math.max(x, this.left + 34), this.left + this.inner - 34));
    }
  }

  select(from, to) {
    if (from === null) {
      this.band.setAttribute('width', 0);
      return;
    }
    const edge = (step) => Math.min(Math.max(this.toPixel(step), this.left), this.left + this.inner);
    this.band.setAttribute('x', Math.min(edge(from), edge(to)));
    this.band.setAttribute('width', Math.abs(edge(to) - edge(from)));
  }

  describe() {
    const parts = this.series.map((one) => {
      const last = one.y.length - 1;
      return `${one.name}: ${this.format(one.y[0])} at step ${one.x[0]}, ${this.format(one.y[last])} at step ${one.x[last]}`;
    });
    return `${this.options.title}. ${parts.join('; ')}. Arrow keys read values, plus and minus zoom, Shift with arrows pans, 0 shows all.`;
  }
}

// Arrow keys move the cursor, with Shift the range; + − zoom; Home, End; 0 or Escape show all.
function moveByKey(view, event) {
  const width = view.high - view.low;
  const stride = Math.max(1, Math.round(width / 100));
  const side = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  if (side && event.shiftKey) view.pan(side * width / 8);
  else if (side) {
    const from = view.cursor === null ? (side > 0 ? view.low - stride : view.high + stride) : view.cursor;
    view.point(Math.min(Math.max(Math.round(from + side * stride), view.low), view.high));
  } else if (event.key === '+' || event.key === '=') view.zoom(1 / 1.6, view.cursor ?? undefined);
  else if (event.key === '-') view.zoom(1.6, view.cursor ?? undefined);
  else if (event.key === 'Home') view.point(Math.ceil(view.low));
  else if (event.key === 'End') view.point(Math.floor(view.high));
  else if (event.key === '0' || event.key === 'Escape') view.all();
  else return false;
  return true;
}
