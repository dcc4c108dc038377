export default {
  test: {
    // Tests about time to live sleep for seconds, so they sleep at the same time.
    maxConcurrency: 32,
    // They assert no times of ours; a busy machine is not a failure.
    testTimeout: 30_000,
    hookTimeout: 30_000,
  },
}
