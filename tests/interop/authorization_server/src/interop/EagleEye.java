package interop;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.nimbusds.jwt.JWTParser;
import jakarta.servlet.Filter;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.text.ParseException;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.catalina.util.ServerInfo;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.SpringBootVersion;
import org.springframework.boot.autoconfigure.EnableAutoConfiguration;
import org.springframework.boot.web.servlet.FilterRegistrationBean;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.core.Ordered;
import org.springframework.core.SpringVersion;
import org.springframework.core.annotation.Order;
import org.springframework.http.HttpStatus;
import org.springframework.http.MediaType;
import org.springframework.jdbc.core.JdbcTemplate;
import org.springframework.security.config.Customizer;
import org.springframework.security.config.annotation.web.builders.HttpSecurity;
import org.springframework.security.config.http.SessionCreationPolicy;
import org.springframework.security.core.SpringSecurityCoreVersion;
import org.springframework.security.core.authority.AuthorityUtils;
import org.springframework.security.core.userdetails.User;
import org.springframework.security.core.userdetails.UserDetails;
import org.springframework.security.core.userdetails.UserDetailsService;
import org.springframework.security.core.userdetails.UsernameNotFoundException;
import org.springframework.security.crypto.password.NoOpPasswordEncoder;
import org.springframework.security.crypto.password.PasswordEncoder;
import org.springframework.security.oauth2.core.AuthorizationGrantType;
import org.springframework.security.oauth2.core.ClientAuthenticationMethod;
import org.springframework.security.oauth2.core.DefaultOAuth2AuthenticatedPrincipal;
import org.springframework.security.oauth2.core.OAuth2AccessToken;
import org.springframework.security.oauth2.core.OAuth2RefreshToken;
import org.springframework.security.oauth2.server.authorization.JdbcOAuth2AuthorizationConsentService;
import org.springframework.security.oauth2.server.authorization.JdbcOAuth2AuthorizationService;
import org.springframework.security.oauth2.server.authorization.OAuth2Authorization;
import org.springframework.security.oauth2.server.authorization.OAuth2AuthorizationConsentService;
import org.springframework.security.oauth2.server.authorization.OAuth2AuthorizationService;
import org.springframework.security.oauth2.server.authorization.OAuth2TokenType;
import org.springframework.security.oauth2.server.authorization.authentication.OAuth2AccessTokenAuthenticationToken;
import org.springframework.security.oauth2.server.authorization.client.RegisteredClient;
import org.springframework.security.oauth2.server.authorization.client.RegisteredClientRepository;
import org.springframework.security.oauth2.server.authorization.config.annotation.web.configurers.OAuth2AuthorizationServerConfigurer;
import org.springframework.security.oauth2.server.authorization.settings.AuthorizationServerSettings;
import org.springframework.security.oauth2.server.authorization.settings.ClientSettings;
import org.springframework.security.oauth2.server.authorization.settings.TokenSettings;
import org.springframework.security.oauth2.server.authorization.web.authentication.OAuth2AccessTokenResponseAuthenticationSuccessHandler;
import org.springframework.security.oauth2.server.resource.InvalidBearerTokenException;
import org.springframework.security.oauth2.server.resource.authentication.BearerTokenAuthentication;
import org.springframework.security.oauth2.server.resource.introspection.BadOpaqueTokenException;
import org.springframework.security.oauth2.server.resource.introspection.OpaqueTokenIntrospector;
import org.springframework.security.oauth2.server.resource.web.BearerTokenAuthenticationEntryPoint;
import org.springframework.security.web.AuthenticationEntryPoint;
import org.springframework.security.web.SecurityFilterChain;
import org.springframework.security.web.authentication.LoginUrlAuthenticationEntryPoint;
import org.springframework.security.web.util.matcher.MediaTypeRequestMatcher;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.server.ResponseStatusException;
import org.springframework.web.util.ContentCachingResponseWrapper;

/**
 * The login and the tokens of Eagle Eye's API v3, by Spring Authorization Server itself, and a
 * little of that API.
 *
 * <p>{@code java -jar authorization_server.jar --port 9600 --client-id ID --client-secret SECRET}.
 * What is not set here is Spring's default. Ours are {@code httpsBaseUrl}, which a token answer
 * names the account's host by, refresh tokens that rotate, tokens in a database, and an API that
 * takes an access token only while its login has no newer one, as Eagle Eye's documentation says.
 */
@EnableAutoConfiguration
@Configuration
public class EagleEye {

  static final Map<String, Integer> ACCOUNTS =
      Map.of("anna@example.com", 501, "bob@example.com", 502);
  static final Map<String, List<String>> CAMERAS =
      Map.of(
          "anna@example.com", List.of("Front gate", "Parking lot", "Warehouse", "Loading dock"),
          "bob@example.com", List.of("Shop floor", "Back door"));
  static final String TOKEN = "/oauth2/token";
  static final String REVOKE = "/oauth2/revoke";

  public static void main(String[] arguments) {
    SpringApplication app = new SpringApplication(EagleEye.class, API.class, Control.class);
    String schema = "classpath:org/springframework/security/oauth2/server/authorization/oauth2-";
    Map<String, Object> defaults = new HashMap<>();
    defaults.put("server.address", "127.0.0.1");
    defaults.put("server.port", "${port}");
    // Cookies know no ports (RFC 6265 §8.5): the applications are on 127.0.0.1, too.
    defaults.put("server.servlet.session.cookie.name", "SPRING");
    defaults.put("spring.main.banner-mode", "off");
    defaults.put("spring.datasource.url", "jdbc:h2:mem:tokens;DB_CLOSE_DELAY=-1");
    defaults.put("spring.sql.init.mode", "always");
    defaults.put(
        "spring.sql.init.schema-locations",
        schema + "authorization-schema.sql," + schema + "authorization-consent-schema.sql");
    app.setDefaultProperties(defaults);
    // "--port", "9600" as the other servers of these tests take it; Spring wants "--port=9600".
    List<String> options = new ArrayList<>();
    for (int i = 0; i + 1 < arguments.length; i += 2) {
      options.add(arguments[i] + "=" + arguments[i + 1]);
    }
    app.run(options.toArray(new String[0]));
  }

  /** What a test sets, and what has happened since the reset. */
  static class State {
    /** Both are this machine; an account is at one of them, and moves to the other. */
    private static final List<String> HOSTS = List.of("127.0.0.1", "localhost");

    final List<Map<String, Object>> tokenCalls = new CopyOnWriteArrayList<>();
    final List<Integer> revocations = new CopyOnWriteArrayList<>();
    final List<String> usedRefreshTokens = new CopyOnWriteArrayList<>();
    final Set<String> disabled = ConcurrentHashMap.newKeySet();
    final AtomicInteger answersToLose = new AtomicInteger();
    volatile long accessLifetime;
    volatile long refreshLifetime;
    volatile long codeLifetime;
    volatile boolean rotates;
    volatile boolean forbidsDeadBearers;
    volatile double answerDelay;
    volatile CyclicBarrier meeting;
    private final Map<String, Integer> moves = new ConcurrentHashMap<>();
    private final Map<String, String> hosts = new ConcurrentHashMap<>();
    private final int port;

    State(int port) {
      this.port = port;
      reset();
    }

    /** Lifetimes are in seconds, and Eagle Eye's. */
    final void reset() {
      accessLifetime = 43_198;
      refreshLifetime = 14 * 86_400;
      codeLifetime = 300;
      rotates = true;
      forbidsDeadBearers = false;
      answerDelay = 0;
      meeting = null;
      answersToLose.set(0);
      disabled.clear();
      moves.clear();
      hosts.clear();
      forget();
    }

    final void forget() {
      tokenCalls.clear();
      revocations.clear();
      usedRefreshTokens.clear();
    }

    /** Lets the next two refreshes read their login before either changes it. */
    void meet() {
      CyclicBarrier barrier = meeting;
      if (barrier != null) {
        try {
          barrier.await(3, TimeUnit.SECONDS);
        } catch (Exception alone) {
          // The comparison finds one answer, where two were to come.
        }
        meeting = null;
      }
    }

    void move(String email) {
      moves.merge(email, 1, Integer::sum);
    }

    /** Says where the API of a new access token is, and keeps it. */
    Map<String, Object> place(String email, String accessToken) {
      int number = ACCOUNTS.get(email) + moves.getOrDefault(email, 0);
      hosts.put(accessToken, HOSTS.get(number % HOSTS.size()));
      return httpsBaseUrl(accessToken);
    }

    Map<String, Object> httpsBaseUrl(String accessToken) {
      return Map.of("hostname", host(accessToken), "port", port);
    }

    String host(String accessToken) {
      return hosts.getOrDefault(accessToken, HOSTS.get(0));
    }
  }

  @Bean
  static State state(@Value("${port}") int port) {
    return new State(port);
  }

  /** The keys: the application's, which has to use PKCE, and those of the comparison. */
  static class Keys implements RegisteredClientRepository {
    private final State state;
    private final String id;
    private final Map<String, String> secrets;

    Keys(State state, String id, String secret) {
      this.state = state;
      this.id = id;
      this.secrets =
          Map.of(id, secret, "demo-key-id", "demo-key-secret", "other-key-id", "other-key-secret");
    }

    @Override
    public void save(RegisteredClient client) {
      throw new UnsupportedOperationException();
    }

    @Override
    public RegisteredClient findByClientId(String clientId) {
      return findById(clientId);
    }

    @Override
    public RegisteredClient findById(String clientId) {
      String secret = secrets.get(clientId);
      if (secret == null) {
        return null;
      }
      return RegisteredClient.withId(clientId)
          .clientId(clientId)
          .clientSecret(secret)
          .clientAuthenticationMethod(ClientAuthenticationMethod.CLIENT_SECRET_BASIC)
          .authorizationGrantType(AuthorizationGrantType.AUTHORIZATION_CODE)
          .authorizationGrantType(AuthorizationGrantType.REFRESH_TOKEN)
          // The port of a loopback URI is free (RFC 8252 §7.3).
          .redirectUri("http://127.0.0.1/auth/callback")
          .redirectUri("http://nobody.invalid/auth/callback")
          .scope("vms.all")
          .clientSettings(
              ClientSettings.builder()
                  .requireAuthorizationConsent(true)
                  .requireProofKey(clientId.equals(id))
                  .build())
          .tokenSettings(
              TokenSettings.builder()
                  .authorizationCodeTimeToLive(Duration.ofSeconds(state.codeLifetime))
                  .accessTokenTimeToLive(Duration.ofSeconds(state.accessLifetime))
                  .refreshTokenTimeToLive(Duration.ofSeconds(state.refreshLifetime))
                  .reuseRefreshTokens(!state.rotates)
                  .build())
          .build();
    }
  }

  @Bean
  static Keys keys(
      State state,
      @Value("${client-id}") String clientId,
      @Value("${client-secret}") String clientSecret) {
    return new Keys(state, clientId, clientSecret);
  }

  /** The users, of whom a test may disable one. */
  static class Users implements UserDetailsService {
    private final State state;

    Users(State state) {
      this.state = state;
    }

    @Override
    public UserDetails loadUserByUsername(String email) {
      if (!ACCOUNTS.containsKey(email)) {
        throw new UsernameNotFoundException(email);
      }
      boolean enabled = !state.disabled.contains(email);
      return new User(
          email, "cameras", enabled, true, true, true, AuthorityUtils.createAuthorityList("USER"));
    }
  }

  @Bean
  static Users users(State state) {
    return new Users(state);
  }

  /** Spring would hash the SECRET anew, which takes longer than an exchange. */
  @Bean
  @SuppressWarnings("deprecation")
  static PasswordEncoder plain() {
    return NoOpPasswordEncoder.getInstance();
  }

  @Bean
  static OAuth2AuthorizationService authorizations(State state, JdbcTemplate jdbc, Keys keys) {
    return new JdbcOAuth2AuthorizationService(jdbc, keys) {
      @Override
      public OAuth2Authorization findByToken(String token, OAuth2TokenType type) {
        OAuth2Authorization found = super.findByToken(token, type);
        if (OAuth2TokenType.REFRESH_TOKEN.equals(type)) {
          state.meet();
        }
        return found;
      }
    };
  }

  @Bean
  static OAuth2AuthorizationConsentService consents(JdbcTemplate jdbc, Keys keys) {
    return new JdbcOAuth2AuthorizationConsentService(jdbc, keys);
  }

  @Bean
  static AuthorizationServerSettings authorizationServerSettings() {
    return AuthorizationServerSettings.builder().build();
  }

  @Bean
  @Order(1)
  static SecurityFilterChain authorizationServer(HttpSecurity http, State state)
      throws Exception {
    OAuth2AccessTokenResponseAuthenticationSuccessHandler answer =
        new OAuth2AccessTokenResponseAuthenticationSuccessHandler();
    answer.setAccessTokenResponseCustomizer(
        context -> {
          OAuth2AccessTokenAuthenticationToken given = context.getAuthentication();
          String token = given.getAccessToken().getTokenValue();
          Map<String, Object> more = Map.of("httpsBaseUrl", state.place(subject(token), token));
          context.getAccessTokenResponse().additionalParameters(more);
        });
    OAuth2AuthorizationServerConfigurer server =
        OAuth2AuthorizationServerConfigurer.authorizationServer();
    http.securityMatcher(server.getEndpointsMatcher());
    http.with(
        server,
        settings -> settings.tokenEndpoint(token -> token.accessTokenResponseHandler(answer)));
    http.authorizeHttpRequests(requests -> requests.anyRequest().authenticated());
    http.exceptionHandling(
        errors -> {
          MediaTypeRequestMatcher pages = new MediaTypeRequestMatcher(MediaType.TEXT_HTML);
          pages.setIgnoredMediaTypes(Set.of(MediaType.ALL));
          errors.defaultAuthenticationEntryPointFor(
              new LoginUrlAuthenticationEntryPoint("/login"), pages);
        });
    return http.build();
  }

  /** Of the token, as its login may have a newer one already. */
  private static String subject(String accessToken) {
    try {
      return JWTParser.parse(accessToken).getJWTClaimsSet().getSubject();
    } catch (ParseException error) {
      throw new IllegalStateException(error);
    }
  }

  @Bean
  @Order(2)
  static SecurityFilterChain api(
      HttpSecurity http, State state, OAuth2AuthorizationService authorizations) throws Exception {
    OpaqueTokenIntrospector introspector =
        token -> {
          OAuth2Authorization found =
              authorizations.findByToken(token, OAuth2TokenType.ACCESS_TOKEN);
          if (found == null || !found.getAccessToken().isActive()) {
            throw new BadOpaqueTokenException("This access token is not valid");
          }
          String email = found.getPrincipalName();
          Map<String, Object> attributes = Map.of("sub", email);
          return new DefaultOAuth2AuthenticatedPrincipal(
              email, attributes, AuthorityUtils.NO_AUTHORITIES);
        };
    BearerTokenAuthenticationEntryPoint challenge = new BearerTokenAuthenticationEntryPoint();
    AuthenticationEntryPoint refusal =
        (request, response, error) -> {
          if (state.forbidsDeadBearers && error instanceof InvalidBearerTokenException) {
            response.setStatus(HttpServletResponse.SC_FORBIDDEN);
          } else {
            challenge.commence(request, response, error);
          }
        };
    http.securityMatcher("/api/**");
    http.authorizeHttpRequests(requests -> requests.anyRequest().authenticated());
    http.sessionManagement(
        sessions -> sessions.sessionCreationPolicy(SessionCreationPolicy.STATELESS));
    http.oauth2ResourceServer(
        resources ->
            resources
                .authenticationEntryPoint(refusal)
                .opaqueToken(tokens -> tokens.introspector(introspector)));
    return http.build();
  }

  @Bean
  @Order(3)
  static SecurityFilterChain pages(HttpSecurity http) throws Exception {
    http.authorizeHttpRequests(
        requests ->
            requests
                .requestMatchers("/_control", "/error")
                .permitAll()
                .anyRequest()
                .authenticated());
    http.formLogin(Customizer.withDefaults());
    http.csrf(csrf -> csrf.ignoringRequestMatchers("/_control"));
    return http.build();
  }

  /** Notes the calls of the token and the revocation endpoint; delays or loses token answers. */
  @Bean
  static FilterRegistrationBean<Filter> recorder(State state) {
    Filter filter =
        (request, response, chain) -> {
          HttpServletRequest call = (HttpServletRequest) request;
          HttpServletResponse raw = (HttpServletResponse) response;
          if (!call.getRequestURI().equals(TOKEN)) {
            chain.doFilter(request, response);
            if (call.getRequestURI().equals(REVOKE)) {
              state.revocations.add(raw.getStatus());
            }
            return;
          }
          ContentCachingResponseWrapper answer = new ContentCachingResponseWrapper(raw);
          chain.doFilter(request, answer);
          String grantType = String.valueOf(call.getParameter("grant_type"));
          if (grantType.equals("refresh_token") && answer.getStatus() == 200) {
            state.usedRefreshTokens.add(call.getParameter("refresh_token"));
          }
          state.tokenCalls.add(Map.of("grant_type", grantType, "status", answer.getStatus()));
          pause(state.answerDelay);
          if (state.answersToLose.getAndUpdate(left -> Math.max(0, left - 1)) > 0) {
            raw.reset();
            raw.setStatus(HttpServletResponse.SC_BAD_GATEWAY);
          } else {
            answer.copyBodyToResponse();
          }
        };
    FilterRegistrationBean<Filter> bean = new FilterRegistrationBean<>(filter);
    bean.setOrder(Ordered.HIGHEST_PRECEDENCE);
    return bean;
  }

  private static void pause(double seconds) {
    try {
      Thread.sleep((long) (seconds * 1000));
    } catch (InterruptedException stop) {
      Thread.currentThread().interrupt();
    }
  }

  /** A little of the API v3. */
  @RestController
  static class API {
    private final State state;

    API(State state) {
      this.state = state;
    }

    @GetMapping("/api/v3.0/users/self")
    Map<String, Object> self(HttpServletRequest request, BearerTokenAuthentication bearer) {
      String email = userAtHome(request, bearer);
      String name = email.replaceAll("@.*", "");
      Map<String, Object> user = new LinkedHashMap<>();
      user.put("id", String.format("%08x", ACCOUNTS.get(email) + 9502));
      user.put("accountId", String.format("%08x", ACCOUNTS.get(email)));
      user.put("email", email);
      user.put("firstName", name.substring(0, 1).toUpperCase() + name.substring(1));
      user.put("lastName", "Example");
      user.put("language", "en");
      return user;
    }

    @GetMapping("/api/v3.0/cameras")
    Map<String, Object> cameras(HttpServletRequest request, BearerTokenAuthentication bearer) {
      String email = userAtHome(request, bearer);
      List<Map<String, Object>> cameras = new ArrayList<>();
      for (String name : CAMERAS.get(email)) {
        String id = String.format("%08x", ACCOUNTS.get(email) * 10 + cameras.size());
        cameras.add(Map.of("id", id, "name", name));
      }
      Map<String, Object> page = new LinkedHashMap<>();
      page.put("nextPageToken", "");
      page.put("prevPageToken", "");
      page.put("totalSize", cameras.size());
      page.put("results", cameras);
      return page;
    }

    /** Each host has this one. */
    @GetMapping("/api/v3.0/clientSettings")
    Map<String, Object> clientSettings(BearerTokenAuthentication bearer) {
      return Map.of("httpsBaseUrl", state.httpsBaseUrl(bearer.getToken().getTokenValue()));
    }

    private String userAtHome(HttpServletRequest request, BearerTokenAuthentication bearer) {
      if (!request.getServerName().equals(state.host(bearer.getToken().getTokenValue()))) {
        throw new ResponseStatusException(HttpStatus.NOT_FOUND);
      }
      return bearer.getName();
    }
  }

  /** Does what a test asks for, and says what has been called. */
  @RestController
  static class Control {
    private final State state;
    private final JdbcTemplate jdbc;
    private final OAuth2AuthorizationService authorizations;

    Control(State state, JdbcTemplate jdbc, OAuth2AuthorizationService authorizations)
        throws Exception {
      this.state = state;
      this.jdbc = jdbc;
      this.authorizations = authorizations;
      Map<String, Object> said = new LinkedHashMap<>();
      said.put("versions", versions());
      said.put("has_grace_period", false);
      said.put("ends_stolen_grants", false);
      System.out.println(new ObjectMapper().writeValueAsString(said));
    }

    private static Map<String, String> versions() {
      Map<String, String> versions = new LinkedHashMap<>();
      versions.put("Spring Authorization Server", version(OAuth2Authorization.class));
      versions.put("its Spring Boot", SpringBootVersion.getVersion());
      versions.put("its Spring", SpringVersion.getVersion());
      versions.put("its Spring Security", SpringSecurityCoreVersion.getVersion());
      versions.put("its Tomcat", ServerInfo.getServerNumber());
      return versions;
    }

    /** The version in the name of the jar that a class is from. */
    private static String version(Class<?> type) {
      String jar = type.getProtectionDomain().getCodeSource().getLocation().toString();
      return jar.replaceAll(".*/[a-z0-9-]+?-([0-9][^/]*)\\.jar!?/?", "$1");
    }

    /** The commands are the other servers' and the simulator's; those not known here are ignored. */
    @PostMapping("/_control")
    Map<String, Object> control(@RequestBody Map<String, Object> commands) {
      if (isTrue(commands, "reset")) {
        jdbc.update("delete from oauth2_authorization");
        jdbc.update("delete from oauth2_authorization_consent");
        state.reset();
      }
      if (isTrue(commands, "forget_calls")) {
        state.forget();
      }
      state.accessLifetime =
          number(commands, "access_token_lifetime", state.accessLifetime).longValue();
      state.refreshLifetime =
          number(commands, "refresh_token_lifetime", state.refreshLifetime).longValue();
      state.codeLifetime = number(commands, "code_lifetime", state.codeLifetime).longValue();
      state.answerDelay = number(commands, "delay_token_answers", state.answerDelay).doubleValue();
      state.answersToLose.set(
          number(commands, "lose_token_answers", state.answersToLose.get()).intValue());
      if (commands.containsKey("rotate_refresh_tokens")) {
        state.rotates = isTrue(commands, "rotate_refresh_tokens");
      }
      if (commands.containsKey("forbid_dead_bearers")) {
        state.forbidsDeadBearers = isTrue(commands, "forbid_dead_bearers");
      }
      if (isTrue(commands, "meet")) {
        state.meeting = new CyclicBarrier(2);
      }
      if (commands.get("disable_user") instanceof String email) {
        state.disabled.add(email);
      }
      if (commands.get("move_account") instanceof String email) {
        state.move(email);
      }
      if (commands.get("revoke_user") instanceof String email) {
        jdbc.update("delete from oauth2_authorization where principal_name = ?", email);
      }
      expire(isTrue(commands, "expire_access_tokens"), isTrue(commands, "expire_refresh_tokens"));
      Map<String, Object> said = new LinkedHashMap<>();
      said.put("token_calls", List.copyOf(state.tokenCalls));
      said.put("revocations", List.copyOf(state.revocations));
      said.put("used_refresh_tokens", List.copyOf(state.usedRefreshTokens));
      said.put("living_refresh_tokens", granted().stream().filter(Control::isAlive).count());
      return said;
    }

    private static boolean isTrue(Map<String, Object> commands, String name) {
      return Boolean.TRUE.equals(commands.get(name));
    }

    private static Number number(Map<String, Object> commands, String name, Number otherwise) {
      return commands.get(name) instanceof Number given ? given : otherwise;
    }

    /** The logins that have tokens. */
    private List<OAuth2Authorization> granted() {
      List<OAuth2Authorization> found = new ArrayList<>();
      for (String id : jdbc.queryForList("select id from oauth2_authorization", String.class)) {
        OAuth2Authorization authorization = authorizations.findById(id);
        if (authorization != null && authorization.getRefreshToken() != null) {
          found.add(authorization);
        }
      }
      return found;
    }

    private static boolean isAlive(OAuth2Authorization authorization) {
      return authorization.getRefreshToken().isActive();
    }

    private void expire(boolean accessTokens, boolean refreshTokens) {
      if (!accessTokens && !refreshTokens) {
        return;
      }
      Instant end = Instant.now().minusSeconds(1);
      Instant start = end.minusSeconds(1);
      for (OAuth2Authorization authorization : granted()) {
        OAuth2AccessToken access = authorization.getAccessToken().getToken();
        OAuth2RefreshToken refresh = authorization.getRefreshToken().getToken();
        OAuth2Authorization.Builder changed = OAuth2Authorization.from(authorization);
        if (accessTokens) {
          changed.accessToken(
              new OAuth2AccessToken(
                  access.getTokenType(), access.getTokenValue(), start, end, access.getScopes()));
        }
        if (refreshTokens) {
          changed.refreshToken(new OAuth2RefreshToken(refresh.getTokenValue(), start, end));
        }
        authorizations.save(changed.build());
      }
    }
  }
}
