// One place for the libraries of the page, and the bridge between signals and components.
import {
  html, render, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState,
} from '../vendor/htm-preact.js';
import { batch, computed, effect, signal } from '../vendor/signals-core.js';

export {
  batch, computed, effect, html, render, signal,
  useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState,
};

/**
 * The value of a signal; the component is drawn again when it changes.
 * @template T
 * @param {{ value: T, peek: () => T }} source
 * @returns {T}
 */
export function useValue(source) {
  const [, redraw] = useState(0);
  useEffect(() => {
    let first = true;
    return effect(() => {
      source.value;
      if (!first) redraw((/** @type {number} */ n) => n + 1);
      first = false;
    });
  }, [source]);
  return source.peek();
}
